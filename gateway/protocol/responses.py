"""OpenAI's `/v1/responses` and `/v1/responses/input_tokens`, without state: references to something stored
are refused by name.
"""

from typing import Any

from gateway.protocol.fields import (
    Checker,
    anything,
    boolean,
    check_fields,
    hint,
    integer,
    members,
    one_of,
    only,
    preferred,
    string,
    strings,
)
from gateway.protocol.input_items import check_input
from gateway.protocol.refused import MISSED
from gateway.protocol.sampling import (
    ACCOUNT_FIELDS,
    LOGPROBS_MAX,
    SAMPLING_FIELDS,
    check_model,
    check_output_tokens,
    check_template_kwargs,
    model_of,
)
from gateway.protocol.structured import check_one_constraint, check_text_format
from gateway.protocol.text_size import TOKENS_PER_MESSAGE, text_bytes, tokens_of_bytes
from gateway.protocol.tier import requested_tier
from gateway.protocol.tools import check_responses_tools, responses_tools_size
from gateway.request import ParsedRequest, RouteSpec

TOOL_CALLS_MAX = 128
INCLUDED = preferred(one_of("message.output_text.logprobs", "reasoning.encrypted_content"))
INCLUDED_MAX = 32


def parse(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    return _parsed(route, body, bool(body.get("stream")), samples=1)


def parse_count(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """The same input, counted and never answered."""
    check_fields(body, FIELDS)
    for name in ("stream", "stream_options", "max_output_tokens"):
        body.pop(name, None)
    return _parsed(route, body, stream=False, samples=0)


def _parsed(route: RouteSpec, body: dict[str, Any], stream: bool, samples: int) -> ParsedRequest:
    model = model_of(body)
    size = check_input(body.get("input")) + text_bytes(body.get("instructions") or "")
    if "tools" in body or "tool_choice" in body:
        size += responses_tools_size(body)
    if (text := body.get("text")) is not None:
        check_one_constraint(body, "text.format", text.get("format"))
    return ParsedRequest(
        route=route,
        model=model,
        stream=stream,
        samples=samples,
        prompts=1,
        input_tokens_estimate=tokens_of_bytes(size) + TOKENS_PER_MESSAGE,
        max_output_tokens=body.get("max_output_tokens") if samples else 0,
        wants_usage=True,
        wants_continuous_usage=False,
        body=body,
        service_tier=requested_tier(body),
    )


FIELDS: dict[str, Checker] = {
    **SAMPLING_FIELDS,
    **ACCOUNT_FIELDS,
    "background": only(False, MISSED["background"]),
    "chat_template_kwargs": check_template_kwargs,
    "include": strings(INCLUDED_MAX, INCLUDED),
    "include_reasoning": boolean,
    "input": anything,
    "instructions": string(),
    "max_output_tokens": check_output_tokens,
    "max_tool_calls": integer(1, TOOL_CALLS_MAX),
    "model": check_model,
    "parallel_tool_calls": boolean,
    "reasoning": members(
        {
            "effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
            "summary": one_of("auto", "concise", "detailed"),
            "generate_summary": one_of("auto", "concise", "detailed"),
        }
    ),
    "stream_options": members({"include_obfuscation": boolean}),
    "text": members({"format": check_text_format, "verbosity": hint("medium")}),
    "tool_choice": anything,
    "tools": check_responses_tools,
    "top_logprobs": integer(0, LOGPROBS_MAX),
    "truncation": hint("disabled"),
}
