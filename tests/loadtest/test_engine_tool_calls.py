"""An ordered tool call: made by the next request that offers the tool, on every route, with the arguments
of the order.
"""

import json
from typing import Any

import pytest

from tests.fixtures.engine import SimEngine
from tests.loadtest.test_engine_answers import events, usage_of

ARGUMENTS = '{"place": "the sea, [far] out"}'
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
FUNCTION = {"name": "look_up", "parameters": SCHEMA}
ASK = [{"role": "user", "content": "find it"}]
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": ASK, "max_tokens": 90, "tools": [{"type": "function", "function": FUNCTION}]},
    ),
    "responses": (
        "/v1/responses",
        {"input": ASK, "max_output_tokens": 90, "tools": [{"type": "function"} | FUNCTION]},
    ),
    "messages": (
        "/v1/messages",
        {
            "model": "sim",
            "messages": ASK,
            "max_tokens": 90,
            "tools": [{"name": "look_up", "input_schema": SCHEMA}],
        },
    ),
}


def call_in(route: str, answer: dict[str, Any]) -> tuple[str, Any] | None:
    """Name and arguments of the call in a whole answer."""
    if route == "chat":
        calls = [call["function"] for call in answer["choices"][0]["message"].get("tool_calls", [])]
    elif route == "responses":
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
    else:
        calls = [
            part | {"arguments": json.dumps(part["input"])} for part in answer["content"] if "input" in part
        ]
    return (calls[0]["name"], json.loads(calls[0]["arguments"])) if calls else None


def streamed_call(route: str, chunks: list[dict[str, Any]]) -> tuple[str, Any]:
    """The same, put together from a stream."""
    if route == "chat":
        deltas = [
            chunk["choices"][0]["delta"].get("tool_calls", [{}])[0] for chunk in chunks if chunk["choices"]
        ]
        functions = [delta["function"] for delta in deltas if delta]
        return functions[0]["name"], json.loads("".join(function["arguments"] for function in functions[1:]))
    if route == "responses":
        opened = next(chunk["item"] for chunk in chunks if chunk["type"] == "response.output_item.added")
        pieces = [
            chunk["delta"] for chunk in chunks if chunk["type"] == "response.function_call_arguments.delta"
        ]
        last = chunks[-1]["response"]["output"][0]
        assert last == next(chunk["item"] for chunk in chunks if chunk["type"] == "response.output_item.done")
        assert last["arguments"] == "".join(pieces)
        assert {name for name in last if last[name] != opened[name]} == {"arguments", "status"}
        return opened["name"], json.loads("".join(pieces))
    block = next(chunk["content_block"] for chunk in chunks if chunk["type"] == "content_block_start")
    deltas = [chunk["delta"] for chunk in chunks if chunk["type"] == "content_block_delta"]
    return block["name"], json.loads("".join(delta["partial_json"] for delta in deltas))


@pytest.mark.parametrize("route", ROUTES)
def test_an_ordered_call_is_made_once_by_who_offers_the_tool(engine: SimEngine, route: str) -> None:
    path, body = ROUTES[route]
    engine.faults("tool_call", f"look_up:{ARGUMENTS}")
    without = engine.post(path, {name: value for name, value in body.items() if name != "tools"})
    first, then = (engine.post(path, body).raise_for_status().json() for _ in range(2))
    assert call_in(route, without.raise_for_status().json()) is None
    assert call_in(route, first) == ("look_up", json.loads(ARGUMENTS))
    assert call_in(route, then) is None


@pytest.mark.parametrize("route", ROUTES)
def test_an_ordered_call_is_streamed_in_pieces_and_counted(engine: SimEngine, route: str) -> None:
    path, body = ROUTES[route]
    engine.faults("tool_call", f"look_up:{ARGUMENTS}", count=2)
    whole = engine.post(path, body).raise_for_status().json()
    streamed = engine.post(
        path, body | {"stream": True, "stream_options": {"include_usage": True}}
    ).raise_for_status()
    assert (
        streamed_call(route, events(streamed.text))
        == call_in(route, whole)
        == ("look_up", json.loads(ARGUMENTS))
    )
    outputs = [truth["output"] for truth in engine.truth().values()]
    assert outputs == [usage_of(whole)[1]] * 2


def test_a_call_is_cut_where_the_answer_may_not_be_longer(engine: SimEngine) -> None:
    path, body = ROUTES["chat"]
    engine.faults("tool_call", f"look_up:{ARGUMENTS}")
    choice = engine.post(path, body | {"max_tokens": 3}).raise_for_status().json()["choices"][0]
    said = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert choice["finish_reason"] == "length"
    assert ARGUMENTS.startswith(said)
    assert said != ARGUMENTS
