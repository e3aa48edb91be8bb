"""What a translation costs: CPU time, the best of several, because other processes only ever add to it; in
readings of a small JSON text at the same moment, because what shares the core slows down both.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.protocol import parse_request
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.translate import ChatStream, MessagesStream, chat_request, messages_request
from tests.gateway.translate.providers import chunk, event

pytestmark = pytest.mark.speed
# It takes 27 and up to 2.0, quiet machine or busy; one reading is 1.6 µs on a quiet one.
REQUEST_MAX, PIECE_MAX = 45.0, 3.0
PIECES = 500
READ = json.dumps({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": " word"}}]})


def cost(work: Callable[[], object], times: int) -> float:
    """Of one time, in readings."""

    def once(what: Callable[[], object]) -> float:
        started = time.process_time()
        for _ in range(times):
            what()
        return time.process_time() - started

    rounds = [(once(work), once(lambda: json.loads(READ))) for _ in range(20)]
    return min(each for each, _ in rounds) / min(reading for _, reading in rounds)


def agent_request() -> dict[str, Any]:
    """A turn of an agent: 10 tools, 5 rounds of two parallel calls."""
    function = {"description": "d" * 200, "parameters": {"type": "object", "properties": {"a": {}}}}
    said: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}]
    for turn in range(5):
        calls = [
            {"id": f"c{turn}{at}", "type": "function", "function": {"name": "f0", "arguments": '{"a":"x"}'}}
            for at in range(2)
        ]
        said += [
            {"role": "user", "content": "hello " * 20},
            {"role": "assistant", "content": "wait", "tool_calls": calls},
            *({"role": "tool", "tool_call_id": call["id"], "content": "result " * 20} for call in calls),
        ]
    said.append({"role": "user", "content": "go on"})
    tools = [{"type": "function", "function": {"name": f"f{at}"} | function} for at in range(10)]
    body = json.dumps({"model": "m", "messages": said, "tools": tools}).encode()
    return parse_request(ROUTES[Route.CHAT], body).body


def test_a_request_is_translated_quickly() -> None:
    chat = agent_request()
    messages = messages_request(chat, default_max_tokens=4096)
    assert cost(lambda: messages_request(chat, default_max_tokens=4096), 100) < REQUEST_MAX
    assert cost(lambda: chat_request(messages), 100) < REQUEST_MAX


def test_a_piece_of_a_stream_is_translated_quickly() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    deltas = ({"type": "text_delta", "text": " word"}, {"type": "input_json_delta", "partial_json": " word"})
    for delta in deltas:
        start = event({"type": "content_block_start", "index": 0, "content_block": call})
        piece = event({"type": "content_block_delta", "index": 0, "delta": delta})
        stream = ChatStream(answer_id="chatcmpl-1", model="m", created=1, include_usage=True)
        stream.feed(start)
        assert cost(lambda stream=stream, piece=piece: stream.feed(piece), PIECES) < PIECE_MAX
    first = {"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a":"'}}
    for start, delta in (
        ({}, {"content": " word"}),
        ({"tool_calls": [first]}, {"tool_calls": [{"index": 0, "function": {"arguments": " word"}}]}),
    ):
        answer = MessagesStream(answer_id="msg_1", model="m")
        answer.feed(chunk(start))
        piece = chunk(delta)
        assert cost(lambda answer=answer, piece=piece: answer.feed(piece), PIECES) < PIECE_MAX


def test_what_waits_for_a_long_call_does_not_read_it_again_and_again() -> None:
    stream = MessagesStream(answer_id="msg_1", model="m")
    call = {"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a":['}}
    stream.feed(chunk({"tool_calls": [call]}))
    for _ in range(20):
        stream.feed(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1," * 50_000}}]}))
    piece = chunk({"content": "word"})
    assert cost(lambda: stream.feed(piece), PIECES) < PIECE_MAX
