"""The entry: which route's allow-list a body is held against."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gateway.protocol import chat, completions, embeddings, messages, responses, tokenize
from gateway.protocol.ignored import Recording
from gateway.protocol.json_body import load_object
from gateway.request import ParsedRequest, Route

_PARSERS: dict[Route, Callable[[dict[str, Any]], ParsedRequest]] = {
    Route.CHAT: chat.parse,
    Route.COMPLETIONS: completions.parse,
    Route.RESPONSES: responses.parse,
    Route.MESSAGES: messages.parse,
    Route.EMBEDDINGS: embeddings.parse,
    Route.COUNT_TOKENS: messages.parse_count,
    Route.TOKENIZE: tokenize.parse,
    Route.INPUT_TOKENS: responses.parse_count,
}


def parse_request(route: Route, raw: bytes) -> ParsedRequest:
    """The checked request in `raw`. Raises InvalidJson or another InvalidRequest, before anything is held for it."""
    with Recording() as ignored:
        parsed = _PARSERS[route](load_object(raw))
    places = ignored.places()
    return replace(parsed, ignored=places) if places else parsed
