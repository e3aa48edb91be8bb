"""OpenAI's `/v1/responses`, without state: nothing is stored, so everything that refers to something stored is refused by name."""

from typing import Any

from gateway.protocol.fields import (
    Checker,
    anything,
    array,
    boolean,
    check_fields,
    integer,
    members,
    one_of,
    only,
    string,
)
from gateway.protocol.input_items import check_input
from gateway.protocol.refused import REFUSED
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
from gateway.protocol.tier import asked_tier
from gateway.protocol.tools import check_responses_choice, check_responses_tools, tools_bytes
from gateway.request import Dialect, ParsedRequest, Route

TOOL_CALLS_MAX = 128
INCLUDED = one_of("message.output_text.logprobs", "reasoning.encrypted_content")
INCLUDED_MAX = 8


def parse(body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    model = model_of(body)
    size = check_input(body.get("input")) + text_bytes(body.get("instructions") or "")
    if "tools" in body or "tool_choice" in body:
        check_responses_choice(body)
        size += tools_bytes(body)
    if (text := body.get("text")) is not None:
        check_one_constraint(body, "text.format", text.get("format"))
    return ParsedRequest(
        route=Route.RESPONSES,
        dialect=Dialect.OPENAI,
        model=model,
        stream=bool(body.get("stream")),
        samples=1,
        prompts=1,
        input_tokens_estimate=tokens_of_bytes(size) + TOKENS_PER_MESSAGE,
        max_output_tokens=body.get("max_output_tokens"),
        wants_usage=True,
        wants_continuous_usage=False,
        body=body,
        asked=asked_tier(body),
    )


def _check_include(param: str, value: Any) -> None:
    for index, member in enumerate(array(param, value, INCLUDED_MAX)):
        INCLUDED(f"{param}[{index}]", member)


FIELDS: dict[str, Checker] = {
    **SAMPLING_FIELDS,
    **ACCOUNT_FIELDS,
    "background": only(False, REFUSED["background"]),
    "chat_template_kwargs": check_template_kwargs,
    "include": _check_include,
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
    "text": members({"format": check_text_format, "verbosity": only("medium", "Only medium is supported.")}),
    "tool_choice": anything,
    "tools": check_responses_tools,
    "top_logprobs": integer(0, LOGPROBS_MAX),
    "truncation": one_of("disabled"),
}
