"""`/v1/rerank` and `/v1/score`: their allow-lists. Texts are compared with texts; no tokens are produced."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import InvalidRequest
from gateway.protocol.fields import (
    Checker,
    anything,
    check_fields,
    empty,
    integer,
    missing,
    string,
    too_many,
    unsent,
    wrong_type,
)
from gateway.protocol.sampling import IDENTIFIER_CHARS_MAX, check_model, model_of
from gateway.protocol.text_size import text_bytes, tokens_of_bytes
from gateway.protocol.tier import check_tier, requested_tier
from gateway.request import ParsedRequest, RouteSpec

# As many as inputs of an embeddings request; the caps on the body bound the content.
TEXTS_MAX: Final = 2048
TOKENS_MAX: Final = 1_000_000


def parse_rerank(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    if type(body.get("query")) is list:
        raise wrong_type("query", "a string")
    return _parsed(route, body, RERANK_FIELDS, ("query", "documents"))


def parse_score(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """The same; `text_1` is one text, or as many as there are to compare with. Raises InvalidRequest."""
    parsed = _parsed(route, body, SCORE_FIELDS, ("text_1", "text_2"))
    first, second = _texts("text_1", body["text_1"]), _texts("text_2", body["text_2"])
    if len(first) not in {1, len(second)}:
        raise InvalidRequest("Invalid 'text_1': it must be one text, or as many as 'text_2' has.", "text_1")
    return parsed


def _parsed(
    route: RouteSpec, body: dict[str, Any], fields: Mapping[str, Checker], compared: tuple[str, str]
) -> ParsedRequest:
    """`compared`: the two parameters with the texts."""
    check_fields(body, fields)
    model = model_of(body)
    texts: list[str] = []
    for param in compared:
        if body.get(param) is None:
            raise missing(param)
        texts += _texts(param, body[param])
    return ParsedRequest(
        route=route,
        model=model,
        stream=False,
        samples=len(texts),
        prompts=len(texts),
        input_tokens_estimate=sum(tokens_of_bytes(text_bytes(text)) for text in texts),
        max_output_tokens=0,
        wants_usage=False,
        wants_continuous_usage=False,
        body=body,
        service_tier=requested_tier(body),
    )


def _texts(param: str, value: Any) -> list[str]:
    """One text or a list of them; none may be empty."""
    texts = [value] if type(value) is str else value
    if type(texts) is not list or any(type(text) is not str for text in texts):
        raise wrong_type(param, "a string or an array of strings")
    if not texts or not all(texts):
        raise empty(param)
    if len(texts) > TEXTS_MAX:
        raise too_many(param, TEXTS_MAX, "texts")
    return texts


_SHARED: Final[dict[str, Checker]] = {
    "max_tokens_per_doc": integer(1, TOKENS_MAX),
    "max_tokens_per_query": integer(1, TOKENS_MAX),
    "model": check_model,
    "service_tier": check_tier,
    "user": unsent(string(IDENTIFIER_CHARS_MAX)),
}
RERANK_FIELDS: Final = _SHARED | {"documents": anything, "query": anything, "top_n": integer(1, TEXTS_MAX)}
SCORE_FIELDS: Final = _SHARED | {"text_1": anything, "text_2": anything}
