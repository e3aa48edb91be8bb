"""The smallest body that each route accepts, and the refusal of a body that it does not."""

import json
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.protocol import parse_request
from gateway.request import ParsedRequest, Route
from gateway.routes import ROUTES

SMALLEST: dict[Route, dict[str, Any]] = {
    Route.CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    Route.COMPLETIONS: {"model": "m", "prompt": "hi"},
    Route.RESPONSES: {"model": "m", "input": "hi"},
    Route.MESSAGES: {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    Route.EMBEDDINGS: {"model": "m", "input": "hi"},
    Route.RERANK: {"model": "m", "query": "hi", "documents": ["a", "b"]},
    Route.SCORE: {"model": "m", "text_1": "hi", "text_2": "a"},
    Route.COUNT_TOKENS: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    Route.TOKENIZE: {"model": "m", "prompt": "hi"},
    Route.INPUT_TOKENS: {"model": "m", "input": "hi"},
}


def parse(route: Route, **changes: Any) -> ParsedRequest:
    """The smallest body of `route` with `changes` in it, parsed."""
    return parse_request(ROUTES[route], json.dumps({**SMALLEST[route], **changes}).encode())


def refusal(route: Route, **changes: Any) -> GatewayError:
    """Why it is refused; fails when it is not, or not with a 400."""
    with pytest.raises(GatewayError) as caught:
        parse(route, **changes)
    assert caught.value.status == 400
    return caught.value
