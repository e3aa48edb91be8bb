"""`/v1/completions`: its allow-list, and how many samples its prompts make."""

from typing import Any

from gateway.errors import InvalidRequest
from gateway.protocol.fields import Checker, anything, boolean, check_fields, integer, missing, only, string
from gateway.protocol.prompt import check_prompt
from gateway.protocol.refused import MISSED
from gateway.protocol.sampling import (
    ACCOUNT_FIELDS,
    COMPLETION_FIELDS,
    LOGPROBS_MAX,
    OUTPUT_TOKENS_MAX,
    SAMPLES_MAX,
    check_min_tokens,
    check_model,
    model_of,
    wants_usage,
)
from gateway.protocol.structured import check_one_constraint, check_response_format
from gateway.protocol.text_size import text_bytes, tokens_of_bytes
from gateway.protocol.tier import requested_tier
from gateway.request import ParsedRequest, RouteSpec

PROMPTS_MAX = 64


def parse(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    model = model_of(body)
    max_output_tokens = _max_output_tokens(body)
    check_min_tokens(body, max_output_tokens)
    if body.get("prompt") is None:
        raise missing("prompt")
    prompts, tokens = check_prompt("prompt", body["prompt"], PROMPTS_MAX)
    samples = prompts * (body.get("n") or 1)
    if samples > SAMPLES_MAX:
        raise InvalidRequest(
            f"Invalid 'n': n × prompts is {samples}, at most {SAMPLES_MAX} are allowed.", "n"
        )
    if (answer_format := body.get("response_format")) is not None:
        check_one_constraint(body, "response_format", answer_format)
    usage, continuous = wants_usage(body)
    return ParsedRequest(
        route=route,
        model=model,
        stream=bool(body.get("stream")),
        samples=samples,
        prompts=prompts,
        input_tokens_estimate=tokens + tokens_of_bytes(text_bytes(body.get("suffix") or "")),
        max_output_tokens=max_output_tokens,
        wants_usage=usage,
        wants_continuous_usage=continuous,
        body=body,
        service_tier=requested_tier(body),
    )


def _max_output_tokens(body: dict[str, Any]) -> int | None:
    """Tools that score a text ask for 0 tokens and an echo. vLLM produces one token nevertheless."""
    asked: int | None = body.get("max_tokens")
    if asked == 0:
        if not body.get("echo"):
            raise InvalidRequest("Invalid 'max_tokens': 0 is allowed only with echo.", "max_tokens")
        return 1
    return asked


FIELDS: dict[str, Checker] = {
    **COMPLETION_FIELDS,
    **ACCOUNT_FIELDS,
    "best_of": only(1, MISSED["best_of"]),
    "echo": boolean,
    "logprobs": integer(0, LOGPROBS_MAX),
    "max_tokens": integer(0, OUTPUT_TOKENS_MAX),
    "model": check_model,
    "prompt": anything,
    "response_format": check_response_format,
    "suffix": string(),
}
