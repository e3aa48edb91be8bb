"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`: their allow-lists, their messages, and the
rules between their parameters.
"""

from typing import Any

from gateway.errors import InvalidRequest
from gateway.protocol.blocks import ASSISTANT_BLOCKS, SYSTEM_BLOCKS, USER_BLOCKS, check_blocks
from gateway.protocol.fields import (
    Checker,
    Dropped,
    anything,
    array,
    boolean,
    cache_mark,
    check_fields,
    check_members,
    echoed,
    empty,
    hint,
    integer,
    mapping,
    members,
    missing,
    number,
    one_of,
    preferred,
    string,
    strings,
)
from gateway.protocol.sampling import (
    IDENTIFIER_CHARS_MAX,
    OUTPUT_TOKENS_MAX,
    STOP_CHARS_MAX,
    STOP_STRINGS_MAX,
    TOKEN_ID_MAX,
    check_model,
    check_output_tokens,
    check_template_kwargs,
    check_top_p,
    model_of,
)
from gateway.protocol.structured import check_json_schema
from gateway.protocol.text_size import TOKENS_PER_MESSAGE, text_bytes, tokens_of_bytes
from gateway.protocol.tier import check_anthropic_tier, requested_tier
from gateway.protocol.tools import anthropic_tools_size, check_anthropic_tools
from gateway.request import ParsedRequest, RouteSpec

MESSAGES_MAX = 2048
THINKING_TOKENS_MIN = 1024
ROLES = {"user": USER_BLOCKS, "assistant": ASSISTANT_BLOCKS, "system": SYSTEM_BLOCKS}


def parse(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    if body.get("max_tokens") is None:
        raise missing("max_tokens")
    thinking = body.get("thinking")
    if thinking is not None and thinking.get("budget_tokens", 0) >= body["max_tokens"]:
        raise InvalidRequest(
            "Invalid 'thinking.budget_tokens': must be less than max_tokens.", "thinking.budget_tokens"
        )
    return _parsed(route, body, samples=1, max_output_tokens=body["max_tokens"])


def parse_count(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """The same messages, counted and never answered. Parameters that only an answer would need are allowed
    and not checked.
    """
    check_fields(body, COUNT_FIELDS)
    return _parsed(route, body, samples=0, max_output_tokens=0)


def _parsed(route: RouteSpec, body: dict[str, Any], *, samples: int, max_output_tokens: int) -> ParsedRequest:
    model = model_of(body)
    size = _check_messages(body.get("messages"))
    if (system := body.get("system")) is not None:
        size += check_blocks("system", system, SYSTEM_BLOCKS)
    if "tools" in body or "tool_choice" in body:
        size += anthropic_tools_size(body)
    return ParsedRequest(
        route=route,
        model=model,
        stream=bool(body.get("stream")),
        samples=samples,
        prompts=1,
        input_tokens_estimate=tokens_of_bytes(size) + TOKENS_PER_MESSAGE * len(body["messages"]),
        max_output_tokens=max_output_tokens,
        wants_usage=True,
        wants_continuous_usage=False,
        body=body,
        service_tier=requested_tier(body),
    )


def _check_messages(messages: Any) -> int:
    if messages is None:
        raise missing("messages")
    if not array("messages", messages, MESSAGES_MAX):
        raise empty("messages")
    size = 0
    for index, message in enumerate(messages):
        # Nearly every message is a role and a string.
        if type(message) is dict and len(message) == 2 and type(content := message.get("content")) is str:
            role = message.get("role")
            if type(role) is str and role in ROLES and content:
                size += text_bytes(content)
                continue
        size += _check_message(f"messages[{index}]", message)
    return size


def _check_message(param: str, message: Any) -> int:
    role = mapping(param, message).get("role")
    if role is None:
        raise missing(f"{param}.role")
    if type(role) is not str or role not in ROLES:
        raise InvalidRequest(f"Invalid '{param}.role': must be one of {', '.join(ROLES)}.", f"{param}.role")
    check_members(param, message, {"role": anything, "content": anything}, ("content",))
    if not message["content"]:
        raise empty(f"{param}.content")
    return check_blocks(f"{param}.content", message["content"], ROLES[role])


def _check_thinking(param: str, value: Any) -> None:
    if type(mapping(param, value).get("type")) is str and value["type"] not in _THINKING_TYPES:
        raise Dropped(named=True)
    check_members(param, value, _THINKING, ("type",))
    if (value["type"] == "enabled") != (value.get("budget_tokens") is not None):
        raise InvalidRequest(
            f"Invalid '{param}.budget_tokens': needed when type is enabled, and only then.",
            f"{param}.budget_tokens",
        )


_THINKING_TYPES = frozenset({"enabled", "disabled", "adaptive"})
_THINKING: dict[str, Checker] = {
    "type": string(),
    "budget_tokens": integer(THINKING_TOKENS_MIN, OUTPUT_TOKENS_MAX),
    "display": preferred(one_of("summarized", "omitted", "updates")),
}
_OUTPUT_CONFIG = members(
    {
        "effort": one_of("low", "medium", "high", "xhigh", "max"),
        "format": members({"type": one_of("json_schema"), "schema": check_json_schema}, ("type", "schema")),
    }
)

# Contexts are not edited here. Agents ask on every request for the edit that changes nothing.
_NO_EDIT = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}


def _decline_thread(param: str, _value: Any) -> None:
    """Anthropic's tool runners ask for a thread, and continue without one if they get this code."""
    raise InvalidRequest("Threads are not kept here: send all messages.", param, "thread_unsupported_request")


_COUNTED: dict[str, Checker] = {
    "cache_control": cache_mark,
    "chat_template_kwargs": check_template_kwargs,
    "context_management": hint(_NO_EDIT, {}, {"edits": []}),
    "messages": anything,
    "model": check_model,
    "output_config": _OUTPUT_CONFIG,
    "system": anything,
    "thinking": _check_thinking,
    "thread": _decline_thread,
    "tool_choice": anything,
    "tools": check_anthropic_tools,
}
FIELDS: dict[str, Checker] = {
    **_COUNTED,
    "max_tokens": check_output_tokens,
    "metadata": members({"user_id": string(IDENTIFIER_CHARS_MAX)}),
    "service_tier": check_anthropic_tier,
    "stop_sequences": strings(STOP_STRINGS_MAX, string(STOP_CHARS_MAX, may_be_empty=False)),
    "stream": boolean,
    "temperature": number(0, 1),
    "top_k": integer(0, TOKEN_ID_MAX),
    "top_p": check_top_p,
}
COUNT_FIELDS: dict[str, Checker] = {**dict.fromkeys(FIELDS, echoed), **_COUNTED}
