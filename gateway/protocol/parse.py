"""The entry: which route's allow-list a body is held against."""

from collections.abc import Callable
from typing import Any

from gateway.protocol import chat, completions, embeddings, messages, responses, tokenize
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
}


def parse_request(route: Route, raw: bytes) -> ParsedRequest:
    """The checked request in `raw`. Raises InvalidJson or another InvalidRequest, before anything is held for it."""
    return _PARSERS[route](load_object(raw))
