"""Anthropic's messages and counting: each parameter and block at its cap and one past it."""

from typing import Any

import orjson
import pytest

from gateway.error_form import error_body
from gateway.protocol.messages import MESSAGES_MAX
from gateway.protocol.sampling import STOP_STRINGS_MAX
from gateway.request import Dialect, Route
from tests.gateway.protocol.bodies import parse, refusal

HELLO = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
KEEP_ALL = {"type": "clear_thinking_20251015", "keep": "all"}
BOTH = pytest.mark.parametrize("route", [Route.MESSAGES, Route.COUNT_TOKENS])


def test_what_the_parsed_request_says() -> None:
    parsed = parse(
        Route.MESSAGES,
        stream=True,
        system=[{"type": "text", "text": "x" * 400, "cache_control": {"type": "ephemeral"}}],
    )
    assert (parsed.route.name, parsed.samples, parsed.max_output_tokens, parsed.stream) == (
        Route.MESSAGES,
        1,
        5,
        True,
    )
    assert parsed.input_tokens_estimate > 100
    counted = parse(Route.COUNT_TOKENS)
    assert (counted.route.name, counted.samples, counted.max_output_tokens, counted.stream) == (
        Route.COUNT_TOKENS,
        0,
        0,
        False,
    )


@pytest.mark.parametrize("value", [None, 0, -4, 10**12, True, "5", 1.0])
def test_fault_10_max_tokens_is_there_positive_and_sane(value: Any) -> None:
    assert refusal(Route.MESSAGES, max_tokens=value).param == "max_tokens"


@pytest.mark.parametrize(
    "stops", [["x"] * 10_000, ["x"] * (STOP_STRINGS_MAX + 1), [""], [5], "x", ["x" * 257]]
)
def test_fault_11_stop_sequences_are_capped(stops: Any) -> None:
    assert (refusal(Route.MESSAGES, stop_sequences=stops).param or "").startswith("stop_sequences")


@BOTH
@pytest.mark.parametrize(
    ("param", "messages"),
    [
        ("messages", []), ("messages", None), ("messages", "hi"), ("messages", [HELLO] * (MESSAGES_MAX + 1)),
        ("messages[0]", ["hi"]),
        ("messages[0].role", [{"role": "x", "content": "hi"}]), ("messages[0].role", [{"role": "tool",
        "content": "hi"}]),
        ("messages[0].role", [{"content": "hi"}]), ("messages[0].role", [{"role": {}, "content": "hi"}]),
        ("messages[0].content", [{"role": "user"}]), ("messages[0].content", [{"role": "user",
        "content": ""}]),
        ("messages[0].content", [{"role": "user", "content": []}]), ("messages[0].content", [{"role": "user",
        "content": 5}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"text": "x"}]}]),
        ("messages[0].content[0].source", [{"role": "user", "content": [{"type": "document",
        "source": {}}]}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"type": "tool_use", "id": "1",
        "name": "f", "input": {}}]}]),
        ("messages[0].content[0].type", [{"role": "assistant", "content": [{"type": "image",
        "source": {}}]}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"type": ["text"]}]}]),
        ("messages[0].content[0].text", [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
        ("messages[0].content[0].input", [{"role": "assistant", "content": [{"type": "tool_use", "id": "1",
        "name": "f", "input": "x"}]}]),
        ("messages[0].content[0].tool_use_id", [{"role": "user", "content": [{"type": "tool_result"}]}]),
    ],
)  # fmt: skip
def test_fault_15_messages_are_checked_to_the_last_member(route: Route, param: str, messages: Any) -> None:
    assert refusal(route, messages=messages).param == param


def test_fault_15_an_unknown_role_is_answered_in_anthropics_form() -> None:
    error = refusal(Route.MESSAGES, messages=[{"role": "x", "content": "hi"}])
    body = orjson.loads(error_body(error, Dialect.ANTHROPIC, "req_1"))
    assert (body["type"], body["request_id"]) == ("error", "req_1")
    assert body["error"]["type"] == "invalid_request_error"
    assert "messages[0].role" in body["error"]["message"]


@BOTH
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "f"}])
def test_fault_15_tool_choice_needs_tools(route: Route, choice: dict[str, Any]) -> None:
    assert refusal(route, tool_choice=choice).param == "tool_choice"
    parse(route, tool_choice=choice, tools=[TOOL])


@BOTH
@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("tools[0].input_schema", {"tools": [{"name": "f"}]}), ("tools[0].name", {"tools": [{"name": "a b",
        "input_schema": {}}]}),
        ("tool_choice", {"tool_choice": "auto", "tools": [TOOL]}), ("tool_choice.type",
        {"tool_choice": {"type": "required"}, "tools": [TOOL]}),
        ("tool_choice.name", {"tool_choice": {"type": "tool"}, "tools": [TOOL]}),
        ("tool_choice.name", {"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}),
        ("system", {"system": 5}), ("system[0].type", {"system": [{"type": "image", "source": {}}]}),
        ("thinking.budget_tokens", {"thinking": {"type": "enabled"}}), ("thinking.budget_tokens",
        {"thinking": {"type": "enabled", "budget_tokens": 5}}),
        ("thinking.budget_tokens", {"thinking": {"type": "disabled", "budget_tokens": 2000}}),
        ("thinking.type", {"thinking": {"type": 5}}), ("thinking.type", {"thinking": {}}),
        ("output_config.format.schema", {"output_config": {"format": {"type": "json_schema",
        "schema": {"$ref": "#"}}}}),
        ("mcp_servers", {"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}), ("container",
        {"container": "c"}),
        ("inference_geo", {"inference_geo": "us"}), ("thread", {"thread": {"type": "create"}}),
    ],
)  # fmt: skip
def test_each_parameter_is_held_to_its_type_and_range(
    route: Route, param: str, changes: dict[str, Any]
) -> None:
    assert refusal(route, **changes).param == param


@BOTH
def test_what_changes_nothing_is_taken(route: Route) -> None:
    assert parse(route, tools=[{**TOOL, "allowed_callers": ["direct"], "defer_loading": False}]).ignored == ()
    for edits in ([], [KEEP_ALL]):
        assert parse(route, context_management={"edits": edits}).ignored == ()


def test_thinking_leaves_room_for_an_answer() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000}
    assert refusal(Route.MESSAGES, thinking=thinking, max_tokens=2000).param == "thinking.budget_tokens"
    parse(Route.MESSAGES, thinking=thinking, max_tokens=2001)


def test_a_conversation_sent_back_is_taken() -> None:
    answer = [
        {"type": "thinking", "thinking": "so", "signature": ""},
        {"type": "text", "text": "x", "citations": None},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}, "caller": None},
    ]
    result = {
        "type": "tool_result",
        "tool_use_id": "1",
        "content": [{"type": "text", "text": "42"}],
        "is_error": False,
    }
    parse(
        Route.MESSAGES,
        tools=[TOOL],
        messages=[HELLO, {"role": "assistant", "content": answer}, {"role": "user", "content": [result]}],
    )
