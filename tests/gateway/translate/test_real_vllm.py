"""Real vLLM as the provider, which speaks both dialects: it takes the translated requests, and its answer is
the same for the caller, whole and streamed.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from anthropic.types import Message
from openai.types.chat import ChatCompletion

from gateway.errors import ContextLengthExceeded, EngineFailed, EngineRefused
from gateway.protocol import parse_request
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.translate import (
    ChatStream,
    MessagesStream,
    chat_answer,
    chat_request,
    message_answer,
    messages_request,
)
from gateway.upstream.provider_errors import refusal
from loadtest import plain_http
from tests.fixtures.stack import MODEL, Stack
from tests.gateway.translate.sdks import completion_of, message_of

pytestmark = pytest.mark.vllm
PLACE = {"type": "string", "enum": ["sea", "land"]}
FUNCTION = {
    "name": "go",
    "description": "Go to a place.",
    "strict": True,
    "parameters": {
        "type": "object", "properties": {"place": PLACE}, "required": ["place"],
        "additionalProperties": False,
    },
}  # fmt: skip
TALK: list[dict[str, Any]] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def provider(stack: Stack) -> Iterator[httpx.Client]:
    instance = stack.await_engine()
    headers = {"authorization": f"Bearer {instance['key']}"}
    with plain_http.Client(base_url=instance["url"], headers=headers, timeout=300) as client:
        yield client


def checked(route: Route, **members: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": TALK, "max_tokens": 40, "temperature": 0} | members
    return parse_request(ROUTES[route], json.dumps(body).encode()).body


def asked(provider: httpx.Client, path: str, body: dict[str, Any]) -> bytes:
    response = provider.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.content


def streamed(provider: httpx.Client, path: str, body: dict[str, Any], stream: Any) -> bytes:
    """In the pieces in which they arrive."""
    with provider.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        return b"".join([stream.feed(piece) for piece in response.iter_raw()])


CALLS = {
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "go"}},
    "max_tokens": 60,
}
CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        *TALK,
        {
            "role": "assistant",
            "content": "wait",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "go", "arguments": '{"place":"sea"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "You are at the sea."},
        {"role": "user", "content": "So?"},
    ]
}


@pytest.mark.parametrize(
    "members", [{}, {"stop": ["e"]}, CALLS, CONVERSATION], ids=["text", "stop", "call", "talk"]
)
def test_a_chat_caller_of_real_vllms_messages(provider: httpx.Client, members: dict[str, Any]) -> None:
    body = json.loads(orjson.dumps(messages_request(checked(Route.CHAT, **members), default_max_tokens=40)))
    whole = ChatCompletion.model_validate_json(
        chat_answer(asked(provider, "/v1/messages", body), answer_id="chatcmpl-1", model="ours", created=9)
    )
    stream = ChatStream(answer_id="chatcmpl-1", model="ours", created=9, include_usage=True)
    read = completion_of(streamed(provider, "/v1/messages", body, stream))
    compare_chat(whole, read)


def compare_chat(whole: ChatCompletion, read: ChatCompletion) -> None:
    one, other = whole.choices[0], read.choices[0]
    assert (one.message.content or "", one.finish_reason) == (
        other.message.content or "",
        other.finish_reason,
    )
    assert _calls(one.message.tool_calls) == _calls(other.message.tool_calls)
    assert whole.usage is not None
    assert read.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
        read.usage.prompt_tokens,
        read.usage.completion_tokens,
    )


def _calls(calls: Any) -> list[Any]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls or ()]


@pytest.mark.parametrize("members", [{}, {"stop_sequences": ["e"]}, "call"], ids=["text", "stop", "call"])
def test_a_messages_caller_of_real_vllms_chat(provider: httpx.Client, members: Any) -> None:
    if members == "call":
        tool = {"name": "go", "strict": True, "input_schema": FUNCTION["parameters"]}
        members = {"tools": [tool], "tool_choice": {"type": "tool", "name": "go"}, "max_tokens": 60}
    body = chat_request(checked(Route.MESSAGES, **members))
    whole = Message.model_validate_json(
        message_answer(asked(provider, "/v1/chat/completions", body), answer_id="msg_1", model="ours")
    )
    streams = chat_request(checked(Route.MESSAGES, stream=True, **members))
    streams["stream_options"] = {"include_usage": True}
    stream = MessagesStream(answer_id="msg_1", model="ours")
    read = message_of(streamed(provider, "/v1/chat/completions", streams, stream))
    for one in (whole, read):
        for block in one.content:
            if block.type == "tool_use":
                block.id = "any"
    assert [block.model_dump(exclude_none=True) for block in whole.content] == [
        block.model_dump(exclude_none=True, exclude={"parsed_output"}) for block in read.content
    ]
    assert (whole.stop_reason, whole.stop_sequence) == (read.stop_reason, read.stop_sequence)
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        read.usage.input_tokens,
        read.usage.output_tokens,
    )


def test_errors_of_real_vllm(provider: httpx.Client) -> None:
    refused = provider.post("/v1/chat/completions", json={"model": "other", "messages": TALK})
    told = refusal(refused.status_code, refused.content, ROUTES[Route.MESSAGES], "x")
    assert isinstance(told, EngineFailed)
    refused = provider.post("/v1/messages", json={"model": MODEL, "messages": TALK, "max_tokens": 10**9})
    told = refusal(refused.status_code, refused.content, ROUTES[Route.CHAT], "x")
    assert isinstance(told, ContextLengthExceeded | EngineRefused)
