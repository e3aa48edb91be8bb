"""Tool calls and reasoning come in vLLM's form, and every token of them is counted."""

import json
from typing import Any

import pytest

from tests.fixtures.engine import SimEngine
from tests.loadtest.test_engine_answers import events, usage_of

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
NAMED = {"type": "function", "function": {"name": "look_up"}}


def chat(content: str = "find it [[fault:stop_after=9]]", **more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": content}], "max_tokens": 50} | more


@pytest.mark.parametrize(("choice", "finish"), [("required", "tool_calls"), (NAMED, "stop")])
def test_a_demanded_tool_is_called_with_whole_arguments(engine: SimEngine, choice: Any, finish: str) -> None:
    body = chat(tools=[TOOL], tool_choice=choice)
    whole = engine.post("/v1/chat/completions", body).json()
    call = whole["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (call["name"], list(json.loads(call["arguments"])), whole["choices"][0]["finish_reason"]) == (
        "look_up",
        ["text"],
        finish,
    )
    assert whole["choices"][0]["message"]["content"] is None
    assert whole["usage"]["completion_tokens"] == 9
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = events(engine.post("/v1/chat/completions", body | options).text)
    deltas = [choice["delta"]["tool_calls"][0] for chunk in chunks[1:-1] for choice in chunk["choices"]]
    assert deltas[0]["function"]["name"] == "look_up"
    assert deltas[0]["function"] == {"name": "look_up"}
    assert "".join(delta["function"]["arguments"] for delta in deltas[1:]) == call["arguments"]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [*range(10), 9]


def test_left_to_itself_it_calls_no_tool(engine: SimEngine) -> None:
    assert (
        "tool_calls"
        not in engine.post("/v1/chat/completions", chat(tools=[TOOL])).json()["choices"][0]["message"]
    )


def test_a_marker_makes_it_call_any_tool(engine: SimEngine) -> None:
    answer = engine.post(
        "/v1/chat/completions", chat("[[fault:tool_call=whatever]] [[fault:stop_after=5]]")
    ).json()
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "whatever"


def test_reasoning_comes_first_and_in_its_own_field(engine: SimEngine) -> None:
    body = chat("think [[fault:reasoning=4]]", max_tokens=10, ignore_eos=True)
    message = engine.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    chunks = events(engine.post("/v1/chat/completions", body | {"stream": True}).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:]]
    assert [next(iter(delta)) for delta in deltas] == ["reasoning"] * 4 + ["content"] * 6
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    only = engine.post(
        "/v1/chat/completions", chat("think [[fault:reasoning=99]]", max_tokens=10, ignore_eos=True)
    ).json()
    assert (only["choices"][0]["message"]["content"], only["usage"]["completion_tokens"]) == (None, 10)


def test_messages_say_thought_and_tool_use_in_blocks_of_their_own(engine: SimEngine) -> None:
    body = chat(
        "think [[fault:reasoning=3]] [[fault:stop_after=9]]",
        tools=[{"name": "look_up", "input_schema": {}}],
        tool_choice={"type": "any"},
    )
    whole = engine.post("/v1/messages", body).json()
    assert [part["type"] for part in whole["content"]] == ["thinking", "tool_use"]
    assert (whole["stop_reason"], whole["usage"]["output_tokens"]) == ("tool_use", 9)
    chunks = events(engine.post("/v1/messages", body | {"stream": True}).text)
    assert [
        (chunk["index"], chunk["content_block"]["type"])
        for chunk in chunks
        if chunk["type"] == "content_block_start"
    ] == [(0, "thinking"), (1, "tool_use")]
    arguments = "".join(
        chunk["delta"].get("partial_json", "") for chunk in chunks if chunk["type"] == "content_block_delta"
    )
    assert json.loads(arguments) == whole["content"][1]["input"]


def test_a_thought_that_is_sent_back_is_read(engine: SimEngine) -> None:
    def counted(*thoughts: dict[str, str]) -> int:
        said = [*thoughts, {"type": "text", "text": "found"}]
        again = {
            "model": "sim",
            "max_tokens": 1,
            "messages": [*chat("find it")["messages"], {"role": "assistant", "content": said}],
        }
        count: int = engine.post("/v1/messages/count_tokens", again).raise_for_status().json()["input_tokens"]
        return count

    thought = {"type": "thinking", "thinking": "where could it be", "signature": "s"}
    assert counted(thought) > counted() == counted({"type": "redacted_thinking", "data": "x"})


@pytest.mark.parametrize(
    ("path", "conversation"),
    [
        ("/v1/chat/completions", {"max_tokens": 1, "messages": []}),
        ("/v1/responses", {"max_output_tokens": 1, "input": []}),
    ],
)
def test_a_refusal_that_is_sent_back_is_read(
    engine: SimEngine, path: str, conversation: dict[str, Any]
) -> None:
    name = "messages" if "messages" in conversation else "input"
    said = [
        *chat("find it")["messages"],
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "not that"}]},
    ]
    body = {"model": "sim", **conversation, name: said}
    assert usage_of(engine.post(path, body).raise_for_status().json())[1] == 1
