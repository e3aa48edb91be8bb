"""The adapter of Anthropic's API. Implements `engine_adapter.EngineAdapter`. Pure.

The provider gets nothing of ours but the request. The connection adds its key and the version of the API. A
chat request is translated (`gateway.translate`), and so is its answer.
"""

from collections.abc import Mapping
from typing import Final

import orjson

from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import CapacityClass
from gateway.request import ParsedRequest, Route
from gateway.stream.meter import Meter
from gateway.stream.meter_provider import provider_meter
from gateway.translate import messages_request
from gateway.upstream.engine_adapter import EngineCall
from gateway.upstream.provider_body import (
    EngineOnly,
    cache_marks,
    end_user,
    provider_body,
    refuse_continuous_usage,
)
from gateway.upstream.provider_errors import failure, refusal
from gateway.upstream.translated import translated_meter
from gateway.upstream.uncounted import abort, count, read_count

__all__ = ["CONTINUES_TEXT", "abort", "count", "failure", "meter", "read_count", "refusal", "request"]

CONTINUES_TEXT: Final = False

_PATHS: Final[Mapping[Route, bytes]] = {
    Route.MESSAGES: b"/v1/messages",
    Route.CHAT: b"/v1/messages",
    Route.COUNT_TOKENS: b"/v1/messages/count_tokens",
}
_UNKNOWN: Final[EngineOnly] = {"chat_template_kwargs": ({},)}
_HEADERS: Final = b"user-agent: taas\r\n"
# Of a chat request without a bound, whose model has no default: a message must have one.
MAX_TOKENS: Final = 4096


def request(
    parsed: ParsedRequest,
    instance: InstanceEntry,
    *,
    request_id: str,
    engine_model: str,
    cache_salt: str,
    default_max_tokens: int | None,
    class_: CapacityClass,
    cached_prompt: bytes | None,
) -> EngineCall:
    """Raises UnsupportedParameter for what only engines know, or what messages cannot say. Every message has
    its own `max_tokens`.
    """
    route, user = parsed.route.name, end_user(parsed, cache_salt)
    with cache_marks(parsed):
        body = provider_body(parsed.body, engine_model, _UNKNOWN)
        if route is Route.CHAT:
            refuse_continuous_usage(parsed)
            body = messages_request(body, default_max_tokens=default_max_tokens or MAX_TOKENS)
        if user is not None and route is not Route.COUNT_TOKENS:
            body["metadata"] = {"user_id": user}
        return EngineCall(_PATHS[route], _HEADERS, orjson.dumps(body))


def meter(parsed: ParsedRequest, tier: bytes | None = None) -> Meter:
    """A chat request is answered in messages."""
    return (translated_meter if parsed.route.name is Route.CHAT else provider_meter)(parsed, tier)
