"""Responses: items and parameters, and that nothing with state is taken."""

from typing import Any

import pytest

from gateway.protocol.input_items import ITEMS_MAX
from gateway.request import Route
from tests.gateway.protocol.bodies import parse, refusal

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True), ("prompt",
        {"id": "p"}),
        ("previous_input_messages", [{}]), ("n", 2), ("max_tokens", 5), ("response_format",
        {"type": "json_object"}),
    ],
)  # fmt: skip
def test_what_needs_state_or_does_not_exist_is_refused_by_name(name: str, value: Any) -> None:
    assert refusal(Route.RESPONSES, **{name: value}).param == name


def test_what_the_parsed_request_says() -> None:
    parsed = parse(
        Route.RESPONSES,
        max_output_tokens=7,
        stream=True,
        store=False,
        background=False,
        instructions="x" * 400,
    )
    assert (parsed.samples, parsed.prompts, parsed.max_output_tokens, parsed.stream) == (1, 1, 7, True)
    assert parsed.input_tokens_estimate > 100


@pytest.mark.parametrize("value", [0, -1, 10**12, True, "5"])
def test_fault_10_max_output_tokens_is_positive_and_sane(value: Any) -> None:
    assert refusal(Route.RESPONSES, max_output_tokens=value).param == "max_output_tokens"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("input", None), ("input", ""), ("input", []), ("input", 5), ("input", [{"role": "user",
        "content": "x"}] * (ITEMS_MAX + 1)),
        ("input[0]", ["x"]), ("input[0].type", [{"type": "item_reference", "id": "1"}]), ("input[0].type",
        [{"type": ["message"]}]),
        ("input[0].type", [{"type": "web_search_call"}]), ("input[0].role", [{"role": "x", "content": "x"}]),
        ("input[0].role", [{"content": "x"}]), ("input[0].content", [{"role": "user"}]),
        ("input[0].content", [{"role": "user", "content": 5}]),
        ("input[0].content[0].type", [{"role": "user", "content": [{"type": "x"}]}]),
        ("input[0].content[0].text", [{"role": "user", "content": [{"type": "input_text"}]}]),
        ("input[0].call_id", [{"type": "function_call", "name": "f", "arguments": "{}"}]),
        ("input[0].output", [{"type": "function_call_output", "call_id": "1"}]),
        ("input[0].summary[0].type", [{"type": "reasoning", "summary": [{"text": "x"}]}]),
    ],
)  # fmt: skip
def test_fault_15_items_are_checked_to_the_last_member(param: str, value: Any) -> None:
    assert refusal(Route.RESPONSES, input=value).param == param


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("tools[0].name", {"tools": [{"type": "function"}]}),
        ("tool_choice", {"tools": [], "tool_choice": "required"}), ("tool_choice", {"tools": [],
        "tool_choice": {"type": "function", "name": "f"}}),
        ("tool_choice.name", {"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}),
        ("text.format.type", {"text": {"format": {"type": "grammar"}}}),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "x"}}}),
        ("reasoning.effort", {"reasoning": {"effort": "huge"}}),
        ("top_logprobs", {"top_logprobs": 21}), ("stop", {"stop": ""}), ("max_tool_calls",
        {"max_tool_calls": 0}),
    ],
)  # fmt: skip
def test_each_parameter_is_held_to_its_type_and_range(param: str, changes: dict[str, Any]) -> None:
    assert refusal(Route.RESPONSES, **changes).param == param


def test_what_refers_to_something_stored_is_told_to_send_it_whole() -> None:
    for changes in (
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"previous_response_id": "resp_1"},
    ):
        assert "send the whole input" in refusal(Route.RESPONSES, **changes).message


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_choice_that_says_nothing_may_stand_beside_no_tools(choice: str) -> None:
    body = parse(Route.RESPONSES, tools=[], tool_choice=choice).body
    assert "tools" not in body
    assert "tool_choice" not in body


def test_a_conversation_sent_back_is_taken() -> None:
    text = {"type": "output_text", "text": "x", "annotations": [], "logprobs": None}
    parse(
        Route.RESPONSES,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "f"},
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "so"}],
                "content": None,
                "status": None,
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [text],
                "phase": None,
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "1",
                "name": "f",
                "arguments": "{}",
                "status": "completed",
                "namespace": None,
            },
            {"type": "function_call_output", "call_id": "1", "output": "42"},
        ],
    )
