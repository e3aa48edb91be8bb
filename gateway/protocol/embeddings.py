"""`/v1/embeddings`: its allow-list. Produces no tokens."""

from typing import Any

from gateway.protocol.fields import (
    Checker,
    anything,
    check_fields,
    for_providers,
    integer,
    missing,
    one_of,
    string,
)
from gateway.protocol.prompt import check_prompt
from gateway.protocol.sampling import IDENTIFIER_CHARS_MAX, check_model, model_of
from gateway.protocol.tier import check_tier, requested_tier
from gateway.request import ParsedRequest, RouteSpec

# OpenAI's own cap, which its clients use up; the caps on the body bound the content.
INPUTS_MAX = 2048
DIMENSIONS_MAX = 65_536


def parse(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    model = model_of(body)
    if body.get("input") is None:
        raise missing("input")
    prompts, tokens = check_prompt("input", body["input"], INPUTS_MAX)
    return ParsedRequest(
        route=route,
        model=model,
        stream=False,
        samples=prompts,
        prompts=prompts,
        input_tokens_estimate=tokens,
        max_output_tokens=0,
        wants_usage=False,
        wants_continuous_usage=False,
        body=body,
        service_tier=requested_tier(body),
    )


FIELDS: dict[str, Checker] = {
    "dimensions": integer(1, DIMENSIONS_MAX),
    "encoding_format": one_of("float", "base64"),
    "input": anything,
    "model": check_model,
    "service_tier": check_tier,
    "user": for_providers(string(IDENTIFIER_CHARS_MAX)),
}
