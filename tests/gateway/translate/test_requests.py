"""Requests in the provider's dialect. The SDKs' types and our own parsers read what comes out; what cannot be
carried is refused by name.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pytest
from anthropic.types import message_create_params
from hypothesis import given
from openai.types.chat import completion_create_params
from pydantic import TypeAdapter

from gateway.errors import InvalidRequest
from gateway.protocol import chat as chat_protocol
from gateway.protocol import messages as messages_protocol
from gateway.protocol import parse_request
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.translate import chat_request, messages_request
from gateway.upstream.provider_body import provider_body
from tests.gateway.protocol import sdk_types
from tests.gateway.translate.conversations import (
    IMAGE_URL,
    PNG,
    conversations,
    meaning_of_chat,
    meaning_of_messages,
)

MESSAGES_TYPE: TypeAdapter[Any] = TypeAdapter(
    message_create_params.MessageCreateParamsNonStreaming | message_create_params.MessageCreateParamsStreaming
)
CHAT_TYPE: TypeAdapter[Any] = TypeAdapter(
    completion_create_params.CompletionCreateParamsNonStreaming
    | completion_create_params.CompletionCreateParamsStreaming
)
# Known to the API, but no longer to these types: Anthropic's newest models sample as they like.
NOT_IN_THE_TYPES = ("temperature", "top_p", "top_k")
USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def plain(value: Any) -> Any:
    """Without the lazy iterables of pydantic."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, Iterable) else value


def without(value: Any, left_out: Iterable[str]) -> Any:
    if isinstance(value, dict):
        return {name: without(one, left_out) for name, one in value.items() if name not in left_out}
    return [without(one, left_out) for one in value] if isinstance(value, list) else value


def fits(kind: TypeAdapter[Any], body: dict[str, Any]) -> None:
    """Each member is one that the SDK's type knows: it drops any other."""
    body = without(body, NOT_IN_THE_TYPES)
    assert plain(kind.validate_python(body)) == body


def checked(route: Route, body: dict[str, Any]) -> dict[str, Any]:
    return provider_body(parse_request(ROUTES[route], json.dumps(body).encode()).body, "m", {})


def to_messages(**members: Any) -> dict[str, Any]:
    body = checked(Route.CHAT, {"model": "m", "messages": [USER]} | members)
    before = copy.deepcopy(body)
    there: dict[str, Any] = json.loads(orjson.dumps(messages_request(body, default_max_tokens=4096)))
    assert body == before
    fits(MESSAGES_TYPE, there)
    checked(Route.MESSAGES, there)
    return there


def to_chat(**members: Any) -> dict[str, Any]:
    body = checked(Route.MESSAGES, {"model": "m", "messages": [USER], "max_tokens": 4096} | members)
    before = copy.deepcopy(body)
    there = chat_request(body)
    assert body == before
    fits(CHAT_TYPE, there)
    checked(Route.CHAT, there)
    return there


def refused_by_messages(**members: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        to_messages(**members)
    assert caught.value.message.count(".") >= 1
    assert caught.value.param is not None
    return caught.value.param


def refused_by_chat(**members: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        to_chat(**members)
    assert caught.value.param is not None
    return caught.value.param


@given(conversations())
def test_a_conversation_of_chat_keeps_its_meaning(messages: list[dict[str, Any]]) -> None:
    there = to_messages(messages=messages)
    assert meaning_of_messages(there) == meaning_of_chat(messages)
    assert meaning_of_chat(to_chat(**there)["messages"]) == meaning_of_chat(messages)


@given(conversations())
def test_a_conversation_of_messages_keeps_its_meaning(messages: list[dict[str, Any]]) -> None:
    body = to_messages(messages=messages)
    there = to_chat(**body)
    back = to_messages(messages=there["messages"])
    assert meaning_of_messages(back) == meaning_of_messages(body)


def test_system_is_a_string_or_blocks() -> None:
    system = {"role": "system", "content": "be brief"}
    assert to_messages(messages=[system, USER])["system"] == "be brief"
    developer = {"role": "developer", "content": [{"type": "text", "text": "and kind"}]}
    assert to_messages(messages=[system, developer, USER])["system"] == [
        {"type": "text", "text": "be brief"},
        {"type": "text", "text": "and kind"},
    ]
    assert to_chat(system="be brief")["messages"][0] == system


def test_system_in_the_middle_follows_the_users_turn() -> None:
    """Anthropic refuses it before a message of the user, and beside another one."""
    system = [{"role": "system", "content": "one"}, {"role": "developer", "content": "two"}]
    said = [
        USER,
        {"role": "assistant", "content": "yes"},
        *system,
        USER,
        {"role": "assistant", "content": "no"},
    ]
    there = to_messages(messages=[*said, USER])["messages"]
    assert [message["role"] for message in there] == [
        "user",
        "assistant",
        "user",
        "system",
        "assistant",
        "user",
    ]
    assert [block["text"] for block in there[3]["content"]] == ["one", "two"]


def test_results_of_parallel_calls_are_one_message_of_the_user() -> None:
    calls = [
        {"id": f"c{at}", "type": "function", "function": {"name": "f", "arguments": json.dumps({"at": at})}}
        for at in range(2)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"c{at}", "content": f"r{at}", "name": "f"} for at in range(2)
    ]
    said = [USER, {"role": "assistant", "content": "wait", "tool_calls": calls}, *results, USER]
    there = to_messages(messages=said)["messages"]
    assert [message["role"] for message in there] == ["user", "assistant", "user"]
    assert [block["type"] for block in there[1]["content"]] == ["text", "tool_use", "tool_use"]
    assert [block.get("input") for block in there[1]["content"][1:]] == [{"at": 0}, {"at": 1}]
    assert [block["type"] for block in there[2]["content"]] == ["tool_result", "tool_result", "text"]


def test_messages_of_the_user_in_a_row_stay_apart() -> None:
    assert len(to_messages(messages=[USER, USER])["messages"]) == 2


def test_a_failed_result_says_so() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": "no such file"}
    there = to_chat(messages=[{"role": "user", "content": [result]}])["messages"]
    assert there[0]["role"] == "tool"
    assert [part["text"] for part in there[0]["content"]] == ["The tool call failed.", "no such file"]
    del result["content"]
    there = to_chat(messages=[{"role": "user", "content": [result]}])["messages"]
    assert there == [{"role": "tool", "tool_call_id": "t", "content": "The tool call failed."}]


def test_images_of_a_result_follow_in_a_message_of_the_user() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [IMAGE, {"type": "text", "text": "seen"}]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "ok"},
        {"type": "text", "text": "go on"},
    ]
    first, second, rest = to_chat(messages=[{"role": "user", "content": results}])["messages"]
    assert (first["role"], first["tool_call_id"], first["content"]) == ("tool", "t1", "seen")
    assert (second["tool_call_id"], second["content"]) == ("t2", "ok")
    heading, image, text = rest["content"]
    assert "t1" in heading["text"]
    assert (image, text) == (IMAGE_URL, {"type": "text", "text": "go on"})


def test_images_of_a_tool_message_stay_in_its_result() -> None:
    tool = {"role": "tool", "tool_call_id": "t", "content": [IMAGE_URL]}
    assert to_messages(messages=[USER, tool])["messages"][1]["content"][0]["content"] == [IMAGE]


def test_types_of_images_are_written_small() -> None:
    shouted = {"type": "image_url", "image_url": {"url": f"data:IMAGE/PNG;base64,{PNG}", "detail": "low"}}
    said = to_messages(messages=[{"role": "user", "content": [shouted]}])["messages"]
    assert said[0]["content"] == [IMAGE]


def test_earlier_thinking_is_left_out() -> None:
    """Anthropic takes it only with its own signature, which chat does not have; OpenAI takes none back."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "yes"},
    ]
    there = to_chat(messages=[USER, {"role": "assistant", "content": blocks}, USER])["messages"]
    assert there[1] == {"role": "assistant", "content": "yes"}
    there = to_chat(messages=[USER, {"role": "assistant", "content": blocks[:2]}, USER])["messages"]
    assert there[1] == {"role": "assistant", "content": ""}
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    back = to_messages(messages=[USER, thought, USER])["messages"][1]
    assert back["content"] == [{"type": "text", "text": "yes"}]


def test_text_without_a_visible_character_is_left_out() -> None:
    said = [
        USER,
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": " "}]},
    ]
    assert len(to_messages(messages=[*said, USER])["messages"]) == 2
    assert refused_by_messages(messages=[{"role": "user", "content": ""}]) == "messages"
    assert refused_by_messages(messages=[{"role": "system", "content": "alone"}]) == "messages"


def test_a_refusal_of_the_assistant_is_what_it_said() -> None:
    said = [USER, {"role": "assistant", "content": None, "refusal": "no"}, USER]
    assert to_messages(messages=said)["messages"][1]["content"] == [{"type": "text", "text": "no"}]


def test_ids_of_calls_have_the_characters_that_anthropic_takes() -> None:
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": " "}}
    said = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "1"},
    ]
    there = to_messages(messages=said)["messages"]
    assert there[1]["content"][0]["input"] == {}
    id_ = there[1]["content"][0]["id"]
    assert id_ == there[2]["content"][0]["tool_use_id"]
    assert id_.replace("_", "").isalnum()


@pytest.mark.parametrize("arguments", ["[]", "null", "{", "5"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    param = refused_by_messages(messages=[USER, {"role": "assistant", "tool_calls": [call]}, USER])
    assert param == "messages[1].tool_calls[0].function.arguments"


def test_max_tokens() -> None:
    assert to_messages()["max_tokens"] == 4096
    assert to_messages(max_tokens=5)["max_tokens"] == 5
    assert to_messages(max_completion_tokens=6)["max_tokens"] == 6
    assert to_chat(max_tokens=7)["max_completion_tokens"] == 7


def test_sampling() -> None:
    there = to_messages(temperature=0.5, top_p=0.9, top_k=4, stop="a")
    assert (there["temperature"], there["top_p"], there["top_k"]) == (0.5, 0.9, 4)
    assert there["stop_sequences"] == ["a"]
    assert to_messages(stop=["a", "b"])["stop_sequences"] == ["a", "b"]
    assert "top_k" not in to_messages(top_k=-1)
    there = to_chat(temperature=0, top_p=0.9, stop_sequences=["a", "b"])
    assert (there["temperature"], there["top_p"], there["stop"]) == (0, 0.9, ["a", "b"])
    assert "stop" not in to_chat(stop_sequences=[])
    assert refused_by_messages(temperature=1.5) == "temperature"
    assert refused_by_messages(stop=["a", "\n"]) == "stop"
    assert refused_by_chat(top_k=4) == "top_k"


def test_streams_always_tell_their_usage_to_the_translator() -> None:
    assert to_messages(stream=True, stream_options={"include_usage": True})["stream"] is True
    assert to_chat(stream=True)["stream"] is True


@pytest.mark.parametrize(
    ("chat", "messages"),
    [
        ({}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}},
         {"tool_choice": {"type": "tool", "name": "f"}}),
        ({"parallel_tool_calls": False},
         {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        ({"tool_choice": "required", "parallel_tool_calls": False},
         {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
         {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}}),
    ],
)  # fmt: skip
def test_tools_and_their_choice(chat: dict[str, Any], messages: dict[str, Any]) -> None:
    function = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
    tool = {"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True}
    names = ("tools", "tool_choice", "parallel_tool_calls")
    there = to_messages(tools=[{"type": "function", "function": function}], **chat)
    assert {name: there[name] for name in names if name in there} == {"tools": [tool]} | messages
    there = to_chat(tools=[tool], **messages)
    expected = {"tools": [{"type": "function", "function": function}]} | chat
    if chat.get("tool_choice") == "auto":
        del expected["tool_choice"]
    assert {name: there[name] for name in names if name in there} == expected


def test_no_call_at_all_needs_no_word_on_parallel_calls() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    there = to_messages(tools=tools, tool_choice="none", parallel_tool_calls=False)
    assert there["tool_choice"] == {"type": "none"}
    assert "tool_choice" not in to_messages(parallel_tool_calls=False)


def test_tools_that_the_other_dialect_cannot_name() -> None:
    function = {"type": "function", "function": {"name": "a.b"}}
    assert refused_by_messages(tools=[function]) == "tools[0].function.name"
    assert refused_by_chat(tools=[{"name": "a" * 65, "input_schema": SCHEMA}]) == "tools[0].name"
    assert refused_by_chat(tools=[{"name": "a.b", "input_schema": SCHEMA}]) == "tools[0].name"
    del function["function"]
    assert to_messages(tools=[{"type": "function", "function": {"name": "f"}}])["tools"] == [
        {"name": "f", "input_schema": {"type": "object", "properties": {}}}
    ]


@pytest.mark.parametrize(
    ("chat", "messages"),
    [
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "minimal"},
         {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ({"reasoning_effort": "high"},
         {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ({"thinking_token_budget": 2000}, {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
        ({"thinking_token_budget": 0}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "max", "thinking_token_budget": 2000},
         {"thinking": {"type": "enabled", "budget_tokens": 2000}, "output_config": {"effort": "max"}}),
    ],
)  # fmt: skip
def test_thinking_for_anthropic(chat: dict[str, Any], messages: dict[str, Any]) -> None:
    there = to_messages(**chat)
    assert {name: there.get(name) for name in messages} == messages


@pytest.mark.parametrize(
    ("messages", "effort"),
    [
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "adaptive"}}, None),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "xhigh"}},
            "xhigh",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 8191}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high"),
    ],
)
def test_thinking_for_openai(messages: dict[str, Any], effort: str | None) -> None:
    assert to_chat(max_tokens=32000, **messages).get("reasoning_effort") == effort


@pytest.mark.parametrize("budget", [1, 1023, 4096])
def test_budgets_that_anthropic_refuses(budget: int) -> None:
    assert refused_by_messages(thinking_token_budget=budget) == "thinking_token_budget"


def test_the_form_of_the_answer() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert to_messages(response_format=form)["output_config"] == config
    assert to_chat(output_config=config)["response_format"] == form
    assert "output_config" not in to_messages(response_format={"type": "text"})
    assert refused_by_messages(response_format={"type": "json_object"}) == "response_format.type"


def test_what_an_answer_is_for_is_said_in_its_schema() -> None:
    def described(schema: dict[str, Any]) -> Any:
        form = {"type": "json_schema", "json_schema": {"name": "f", "description": "why", "schema": schema}}
        return to_messages(response_format=form)["output_config"]["format"]["schema"]

    assert described(SCHEMA) == SCHEMA | {"description": "why"}
    assert described(SCHEMA | {"description": "what"})["description"] == "why\nwhat"


def test_who_the_user_is() -> None:
    assert to_messages(metadata={"a": "b"}) == to_messages()
    assert to_chat(metadata={"user_id": "u"}) == to_chat()


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 2}, "n"), ({"seed": 1}, "seed"), ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"), ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"), ({"min_p": 0.1}, "min_p"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"), ({"ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"stop_token_ids": [5]}, "stop_token_ids"), ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": [USER, {"role": "assistant", "content": "a"}]}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message"),
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "text", "text": "a"},
          {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}]},
         "messages[1].content[1].type"),
        ({"messages": [{"role": "user", "content": [
          {"type": "image_url", "image_url": {"url": "data:audio/wav;base64,AAAA"}}]}]},
         "messages[0].content[0].image_url.url"),
    ],
)  # fmt: skip
def test_what_messages_cannot_say_is_refused_by_name(members: dict[str, Any], param: str) -> None:
    assert refused_by_messages(**members) == param


def test_values_without_effect_are_left_out() -> None:
    off = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0.0, "presence_penalty": 0,
        "repetition_penalty": 1.0, "min_p": 0, "min_tokens": 0, "logit_bias": {}, "ignore_eos": False,
        "include_reasoning": True, "skip_special_tokens": True, "spaces_between_special_tokens": True,
        "add_special_tokens": False, "include_stop_str_in_output": False, "stop_token_ids": [], "seed": None,
        "add_generation_prompt": True, "service_tier": "flex", "metadata": {"a": "b"}, "top_k": 0,
    }  # fmt: skip
    assert to_messages(**off) == to_messages()
    assert to_chat(top_k=0, service_tier="auto", cache_control={"type": "ephemeral"}) == to_chat()


def test_an_answer_is_continued_where_the_caller_asks_for_it() -> None:
    said = [USER, {"role": "assistant", "content": "The best"}]
    there = to_messages(messages=said, continue_final_message=True, add_generation_prompt=False)
    assert there["messages"][-1]["role"] == "assistant"
    assert refused_by_chat(messages=said) == "messages[1].role"


SDKS = {
    Route.CHAT: (completion_create_params.CompletionCreateParamsNonStreaming, chat_protocol.FIELDS),
    Route.MESSAGES: (message_create_params.MessageCreateParamsNonStreaming, messages_protocol.FIELDS),
}

# Some value of them, or every one.
REFUSED = {
    Route.CHAT: {
        "frequency_penalty", "logit_bias", "logprobs", "messages", "presence_penalty", "response_format",
        "seed",
    },
    Route.MESSAGES: {"messages"},
}  # fmt: skip


@pytest.mark.parametrize("route", SDKS)
def test_every_value_of_the_sdks_types_is_carried_or_refused_by_name(route: Route) -> None:
    """Whatever our parser takes: one of its types' values at a time."""
    kind, fields = SDKS[route]
    smallest = {"model": "m", "messages": [USER], "max_tokens": 4096}
    carried, refused = set(), set()
    for sample in sdk_types.samples(kind):
        for name in fields.keys() & sample.keys():
            try:
                body = checked(route, smallest | {name: sample[name]})
            except InvalidRequest:
                continue
            if (param := _refusal(route, body)) is None:
                carried.add(name)
            else:
                assert param.startswith(name) or param == "continue_final_message"
                refused.add(name)
    assert {"messages", "model", "max_tokens", "tools"} <= carried
    assert refused == REFUSED[route]


def _refusal(route: Route, body: dict[str, Any]) -> str | None:
    """The parameter that is refused; None if the body fits the provider's types."""
    try:
        if route is Route.CHAT:
            there = orjson.dumps(messages_request(body, default_max_tokens=4096))
            fits(MESSAGES_TYPE, json.loads(there))
        else:
            fits(CHAT_TYPE, chat_request(body))
    except InvalidRequest as exc:
        return exc.param
    return None
