"""Chat's allow-list: each parameter and message at its cap and one past it."""

from typing import Any

import orjson
import pytest

from gateway.error_form import error_body
from gateway.protocol.chat import MESSAGES_MAX
from gateway.protocol.sampling import CHOICES_MAX, LOGIT_BIAS_MAX, STOP_CHARS_MAX, STOP_STRINGS_MAX
from gateway.protocol.tools import TOOLS_MAX
from gateway.request import Dialect, Route
from tests.gateway.protocol.bodies import parse, refusal

HELLO = {"role": "user", "content": "hi"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


def chat_param(**changes: Any) -> str | None:
    return refusal(Route.CHAT, **changes).param


def test_what_the_parsed_request_says() -> None:
    parsed = parse(
        Route.CHAT,
        n=3,
        max_completion_tokens=7,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": False},
    )
    assert (parsed.route.name, parsed.model, parsed.stream) == (Route.CHAT, "m", True)
    assert (parsed.samples, parsed.prompts, parsed.max_output_tokens) == (3, 1, 7)
    assert (parsed.wants_usage, parsed.wants_continuous_usage) == (True, False)
    smallest = parse(Route.CHAT)
    assert (smallest.samples, smallest.max_output_tokens, smallest.wants_usage, smallest.stream) == (
        1,
        None,
        False,
        False,
    )


def test_the_estimate_counts_utf8_text_messages_tools_and_media() -> None:
    plain = parse(Route.CHAT, messages=[{"role": "user", "content": "x" * 400}]).input_tokens_estimate
    assert plain == 104
    assert parse(Route.CHAT, messages=[{"role": "user", "content": "é" * 200}]).input_tokens_estimate == plain
    assert (
        parse(Route.CHAT, messages=[{"role": "user", "content": "x" * 400}, HELLO]).input_tokens_estimate
        == 109
    )
    assert (
        parse(Route.CHAT, tools=[TOOL]).input_tokens_estimate > parse(Route.CHAT).input_tokens_estimate + 20
    )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert parse(Route.CHAT, messages=[{"role": "user", "content": [image]}]).input_tokens_estimate > 1000


@pytest.mark.parametrize("n", [10**9, CHOICES_MAX + 1, 0, -1, True, "3", 1.0, [1], 10**30])
def test_fault_09_n_is_a_small_integer(n: Any) -> None:
    assert chat_param(n=n) == "n"


def test_n_is_allowed_up_to_its_cap() -> None:
    assert parse(Route.CHAT, n=CHOICES_MAX).samples == CHOICES_MAX


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1, 10**12, 2**70, True, "5", 1.5])
def test_fault_10_max_tokens_is_positive_and_sane(name: str, value: Any) -> None:
    assert chat_param(**{name: value}) == name


def test_fault_10_min_tokens_is_not_above_max_tokens() -> None:
    assert chat_param(min_tokens=6, max_tokens=5) == "min_tokens"
    assert parse(Route.CHAT, min_tokens=5, max_tokens=5).max_output_tokens == 5


def test_the_two_names_of_max_tokens_may_not_disagree() -> None:
    assert chat_param(max_tokens=5, max_completion_tokens=6) == "max_tokens"
    assert parse(Route.CHAT, max_tokens=5, max_completion_tokens=5).max_output_tokens == 5


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("top_logprobs", {"logprobs": True, "top_logprobs": 10_000}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": -1}),
        ("top_logprobs", {"top_logprobs": 5}),
        ("logprobs", {"logprobs": 5}),
        ("logit_bias", {"logit_bias": {str(i): 1 for i in range(10**5)}}),
        ("logit_bias", {"logit_bias": {str(i): 1 for i in range(LOGIT_BIAS_MAX + 1)}}),
        ("logit_bias", {"logit_bias": {"a": 1}}),
        ("logit_bias", {"logit_bias": {"-1": 1}}),
        ("logit_bias", {"logit_bias": {"²": 1}}),
        ("logit_bias", {"logit_bias": {"5": 101}}),
        ("logit_bias", {"logit_bias": {"5": True}}),
        ("logit_bias", {"logit_bias": []}),
        ("stop", {"stop": ["x"] * 10_000}),
        ("stop", {"stop": ["x"] * (STOP_STRINGS_MAX + 1)}),
        ("stop", {"stop": ""}),
        ("stop", {"stop": "x" * (STOP_CHARS_MAX + 1)}),
        ("stop[1]", {"stop": ["x", ""]}),
        ("stop[0]", {"stop": [1]}),
        ("stop", {"stop": {"a": 1}}),
        ("stop_token_ids", {"stop_token_ids": list(range(10**5))}),
        ("stop_token_ids", {"stop_token_ids": [True]}),
        ("allowed_token_ids", {"allowed_token_ids": [-1]}),
    ],
)  # fmt: skip
def test_fault_11_logprobs_biases_and_stops_have_caps_below_the_engines(
    param: str, changes: dict[str, Any]
) -> None:
    assert chat_param(**changes) == param


def test_logprobs_biases_and_stops_are_allowed_up_to_their_caps() -> None:
    biases = {str(i): -100 for i in range(LOGIT_BIAS_MAX)}
    parse(
        Route.CHAT,
        logprobs=True,
        top_logprobs=20,
        logit_bias=biases,
        stop=["x" * STOP_CHARS_MAX] * STOP_STRINGS_MAX,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True),
        ("top_p", -0.1), ("top_p", 1.1), ("top_k", -2), ("top_k", 1.5), ("min_p", 1.1),
        ("presence_penalty", 2.5), ("frequency_penalty", -2.5), ("repetition_penalty", 0), ("seed", 2**63),
        ("seed", 1.0), ("stream", "true"), ("stream", 1), ("ignore_eos", "no"), ("reasoning_effort", "huge"),
        ("service_tier", "scale"), ("user", 5), ("user", "x" * 513),
        ("metadata", {str(i): "x" for i in range(17)}), ("metadata", {"a": 1}), ("metadata", {"a" * 65: "x"}),
        ("metadata", {"a": "x" * 513}), ("parallel_tool_calls", 1), ("modalities", ["audio"]), ("echo", True),
    ],
)  # fmt: skip
def test_each_parameter_is_held_to_its_type_and_range(name: str, value: Any) -> None:
    assert chat_param(**{name: value}) == name


@pytest.mark.parametrize("options", [{"include_usage": 1}, [], "x"])
def test_stream_options_are_an_object_of_known_booleans(options: Any) -> None:
    assert (chat_param(stream=True, stream_options=options) or "").startswith("stream_options")


def test_stream_options_need_a_stream() -> None:
    assert chat_param(stream_options={"include_usage": True}) == "stream_options"


@pytest.mark.parametrize(
    ("param", "messages"),
    [
        ("messages", []), ("messages", None), ("messages", "hi"), ("messages", [HELLO] * (MESSAGES_MAX + 1)),
        ("messages[0]", ["hi"]), ("messages[0]", [None]),
        ("messages[0].role", [{"role": "x", "content": "hi"}]), ("messages[0].role", [{"content": "hi"}]),
        ("messages[0].role", [{"role": ["user"], "content": "hi"}]), ("messages[0].role",
        [{"role": "function", "name": "f", "content": "hi"}]),
        ("messages[1].content", [HELLO, {"role": "user"}]), ("messages[0].content", [{"role": "user",
        "content": None}]),
        ("messages[0].content", [{"role": "assistant", "content": None}]), ("messages[0].content",
        [{"role": "user", "content": 5}]),
        ("messages[0].content", [{"role": "user", "content": []}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"type": "x"}]}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"text": "x"}]}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}]),
        ("messages[0].content[0].text", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages[0].audio", [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]),
        ("messages[0].function_call", [{"role": "assistant", "content": "x", "function_call": {"name": "f",
        "arguments": ""}}]),
        ("messages[0].tool_call_id", [{"role": "tool", "content": "x"}]),
        ("messages[0].tool_calls[0].id", [{"role": "assistant", "tool_calls": [{"type": "function",
        "function": {"name": "f", "arguments": ""}}]}]),
        ("messages[0].tool_calls[0].type", [{"role": "assistant", "tool_calls": [{"type": "custom",
        "id": "1"}]}]),
        ("messages[0].tool_calls[0].type", [{"role": "assistant", "tool_calls": [{"id": "1",
        "function": {"name": "f", "arguments": "{}"}}]}]),
        ("messages[0].tool_calls[0].function.arguments", [{"role": "assistant", "tool_calls": [{"id": "1",
        "function": {"name": "f", "arguments": {}}}]}]),
    ],
)  # fmt: skip
def test_fault_15_messages_are_checked_to_the_last_member(param: str, messages: Any) -> None:
    assert chat_param(messages=messages) == param


def test_fault_15_an_unknown_role_is_answered_in_openais_form() -> None:
    error = refusal(Route.CHAT, messages=[{"role": "x", "content": "hi"}])
    body = orjson.loads(error_body(error, Dialect.OPENAI, "req_1"))
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["param"] == "messages[0].role"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_fault_15_tool_choice_needs_tools(choice: Any) -> None:
    assert chat_param(tool_choice=choice) == "tool_choice"
    parse(Route.CHAT, tool_choice=choice, tools=[TOOL])


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("tools", {"tools": [TOOL] * (TOOLS_MAX + 1)}), ("tools", {"tools": {}}),
        ("tools[0].function", {"tools": [{"type": "function"}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools[0].function.parameters", {"tools": [{"type": "function", "function": {"name": "f",
        "strict": True, "parameters": {"$ref": "#"}}}]}),
        ("tools[0].function.parameters", {"tools": [{"type": "function", "function": {"name": "f",
        "parameters": {"type": "string"}}}]}),
        ("tools[0].function.parameters", {"tools": [{"type": "function", "function": {"name": "f",
        "parameters": {"properties": []}}}]}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": "any"}), ("tool_choice", {"tools": [TOOL],
        "tool_choice": 1}),
        ("tool_choice.type", {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}),
        ("tool_choice.function.name", {"tools": [TOOL], "tool_choice": {"type": "function",
        "function": {"name": "g"}}}),
    ],
)  # fmt: skip
def test_tools_are_functions_with_schemas_within_caps(param: str, changes: dict[str, Any]) -> None:
    assert chat_param(**changes) == param


def test_a_message_that_an_sdk_sends_back_is_taken() -> None:
    answer = {
        "role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "reasoning": "so",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }  # fmt: skip
    parse(
        Route.CHAT,
        messages=[
            HELLO,
            answer,
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
        ],
    )


@pytest.mark.parametrize("thought", ["reasoning", "reasoning_content"])
def test_an_answer_that_ended_in_its_thought_is_taken_back(thought: str) -> None:
    parse(Route.CHAT, messages=[HELLO, {"role": "assistant", "content": None, thought: "so"}, HELLO])
    nothing = [HELLO, {"role": "assistant", "content": None, thought: ""}]
    assert chat_param(messages=nothing) == "messages[1].content"


def test_a_last_message_is_continued_only_without_a_generation_prompt() -> None:
    parse(Route.CHAT, continue_final_message=True, add_generation_prompt=False)
    assert chat_param(continue_final_message=True) == "continue_final_message"
