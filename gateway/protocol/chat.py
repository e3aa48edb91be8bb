"""`/v1/chat/completions`: its allow-list, its messages, and the rules between its parameters."""

from typing import Any

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol.content import check_content
from gateway.protocol.fields import (
    Checker,
    anything,
    array,
    boolean,
    check_fields,
    check_members,
    echoed,
    empty,
    hint,
    integer,
    mapping,
    members,
    missing,
    one_of,
    only,
    refused,
    string,
)
from gateway.protocol.refused import MISSED
from gateway.protocol.sampling import (
    ACCOUNT_FIELDS,
    COMPLETION_FIELDS,
    LOGPROBS_MAX,
    OUTPUT_TOKENS_MAX,
    check_min_tokens,
    check_model,
    check_output_tokens,
    check_template_kwargs,
    model_of,
    wants_usage,
)
from gateway.protocol.structured import check_one_constraint, check_response_format
from gateway.protocol.text_size import TOKENS_PER_MESSAGE, text_bytes, tokens_of_bytes
from gateway.protocol.tier import requested_tier
from gateway.protocol.tools import chat_tools_size, check_chat_tools, check_tool_name
from gateway.request import ParsedRequest, RouteSpec

MESSAGES_MAX = 2048
TOOL_CALLS_MAX = 128
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
NAME_CHARS_MAX = 256
# What an answer without text or a call may consist of, for example reasoning that max_tokens has cut short.
INSTEAD_OF_CONTENT = ("reasoning", "reasoning_content", "refusal")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def parse(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    model = model_of(body)
    max_output_tokens = _max_output_tokens(body)
    check_min_tokens(body, max_output_tokens)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise InvalidRequest("Invalid 'top_logprobs': allowed only when logprobs is true.", "top_logprobs")
    check_generation_prompt(body)
    size = check_messages(body.get("messages"))
    if "tools" in body or "tool_choice" in body:
        size += chat_tools_size(body)
    if (answer_format := body.get("response_format")) is not None:
        check_one_constraint(body, "response_format", answer_format)
    usage, continuous = wants_usage(body)
    return ParsedRequest(
        route=route,
        model=model,
        stream=bool(body.get("stream")),
        samples=body.get("n") or 1,
        prompts=1,
        input_tokens_estimate=tokens_of_bytes(size) + TOKENS_PER_MESSAGE * len(body["messages"]),
        max_output_tokens=max_output_tokens,
        wants_usage=usage,
        wants_continuous_usage=continuous,
        body=body,
        service_tier=requested_tier(body),
    )


def check_messages(messages: Any) -> int:
    """All messages; their text in bytes."""
    if messages is None:
        raise missing("messages")
    if not array("messages", messages, MESSAGES_MAX):
        raise empty("messages")
    size = 0
    for index, message in enumerate(messages):
        # Nearly every message is a role and a string; all others take the slower path.
        if type(message) is dict and len(message) == 2 and type(content := message.get("content")) is str:
            role = message.get("role")
            if type(role) is str and role in ROLES and role != "tool":
                size += len(content) if content.isascii() else text_bytes(content)
                continue
        size += _check_message(f"messages[{index}]", message)
    return size


def check_generation_prompt(body: dict[str, Any]) -> None:
    if body.get("continue_final_message") and body.get("add_generation_prompt") is not False:
        raise InvalidRequest(
            "Invalid 'continue_final_message': needs add_generation_prompt to be false.",
            "continue_final_message",
        )


def _max_output_tokens(body: dict[str, Any]) -> int | None:
    newer: int | None = body.get("max_completion_tokens")
    older: int | None = body.get("max_tokens")
    if newer is not None and older is not None and newer != older:
        raise InvalidRequest("Invalid 'max_tokens': differs from max_completion_tokens.", "max_tokens")
    return older if newer is None else newer


def _check_message(param: str, message: Any) -> int:
    role = mapping(param, message).get("role")
    if role is None:
        raise missing(f"{param}.role")
    if type(role) is not str or role not in ROLES:
        raise InvalidRequest(
            f"Invalid '{param}.role': must be one of {', '.join(sorted(ROLES))}.", f"{param}.role"
        )
    check_members(param, message, MESSAGE_FIELDS[role])
    content = message.get("content")
    calls = message.get("tool_calls")
    size = 0
    if content is not None:
        size += check_content(f"{param}.content", content, media=role in {"user", "tool"})
    elif role != "assistant" or not (calls or any(message.get(name) for name in INSTEAD_OF_CONTENT)):
        raise missing(f"{param}.content")
    if role == "tool" and message.get("tool_call_id") is None:
        raise missing(f"{param}.tool_call_id")
    for call in calls or ():
        size += text_bytes(call["function"]["name"]) + text_bytes(call["function"]["arguments"])
    for extra in (*INSTEAD_OF_CONTENT, "name"):
        size += text_bytes(message.get(extra) or "")
    return size


def _check_tool_calls(param: str, value: Any) -> None:
    for index, call in enumerate(array(param, value, TOOL_CALLS_MAX)):
        if mapping(f"{param}[{index}]", call).get("type") not in ("function", None):
            raise UnsupportedParameter(f"{param}[{index}].type", "Only function calls are supported.")
        check_members(f"{param}[{index}]", call, _CALL, ("id", "type", "function"))


_CALL: dict[str, Checker] = {
    "id": string(NAME_CHARS_MAX, may_be_empty=False),
    "type": one_of("function"),
    "index": integer(0, TOOL_CALLS_MAX),
    "function": members({"name": check_tool_name, "arguments": string()}, ("name", "arguments")),
}
_SPOKEN: dict[str, Checker] = {"role": string(), "content": anything, "name": string(NAME_CHARS_MAX)}
MESSAGE_FIELDS: dict[str, dict[str, Checker]] = {
    "system": _SPOKEN,
    "developer": _SPOKEN,
    "user": _SPOKEN,
    "tool": {**_SPOKEN, "tool_call_id": string(NAME_CHARS_MAX, may_be_empty=False)},
    # Members of an answer that SDKs send back.
    "assistant": {
        **_SPOKEN,
        "annotations": echoed,
        "audio": refused("Sound is not kept: send what was said as content."),
        "function_call": refused("Use tool_calls."),
        "reasoning": string(),
        "reasoning_content": string(),
        "refusal": string(),
        "tool_calls": _check_tool_calls,
    },
}

FIELDS: dict[str, Checker] = {
    **COMPLETION_FIELDS,
    **ACCOUNT_FIELDS,
    "add_generation_prompt": boolean,
    "chat_template_kwargs": check_template_kwargs,
    "continue_final_message": boolean,
    "echo": only(False, MISSED["echo"]),
    "function_call": only("none", MISSED["function_call"]),
    "include_reasoning": boolean,
    "logprobs": boolean,
    "max_completion_tokens": check_output_tokens,
    "messages": anything,
    "modalities": only(["text"], MISSED["modalities"]),
    "model": check_model,
    "parallel_tool_calls": boolean,
    "reasoning_effort": one_of(*EFFORTS),
    "response_format": check_response_format,
    "thinking_token_budget": integer(0, OUTPUT_TOKENS_MAX),
    "tool_choice": anything,
    "tools": check_chat_tools,
    "top_logprobs": integer(0, LOGPROBS_MAX),
    "verbosity": hint("medium"),
}
