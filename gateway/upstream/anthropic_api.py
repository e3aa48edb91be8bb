"""The adapter of Anthropic's API. Implements `engine_adapter.EngineAdapter`. Pure.

The provider gets nothing of ours but the request. The connection adds its key and the version of the API.
"""

from collections.abc import Mapping
from typing import Final

import orjson

from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import CapacityClass
from gateway.request import ParsedRequest, Route
from gateway.stream.meter_provider import provider_meter as meter
from gateway.upstream.engine_adapter import EngineCall
from gateway.upstream.provider_body import EngineOnly, provider_body
from gateway.upstream.provider_errors import failure, refusal
from gateway.upstream.uncounted import abort, count, read_count

__all__ = ["CONTINUES_TEXT", "abort", "count", "failure", "meter", "read_count", "refusal", "request"]

CONTINUES_TEXT: Final = False

_PATHS: Final[Mapping[Route, bytes]] = {
    Route.MESSAGES: b"/v1/messages",
    Route.COUNT_TOKENS: b"/v1/messages/count_tokens",
}
_UNKNOWN: Final[EngineOnly] = {"chat_template_kwargs": ({},)}
_HEADERS: Final = b"user-agent: taas\r\n"


def request(
    parsed: ParsedRequest,
    instance: InstanceEntry,
    *,
    request_id: str,
    engine_model: str,
    cache_salt: str,
    default_max_tokens: int | None,
    class_: CapacityClass,
) -> EngineCall:
    """Raises UnsupportedParameter for what only engines know. Every message has its own `max_tokens`."""
    body = provider_body(parsed.body, engine_model, _UNKNOWN)
    return EngineCall(_PATHS[parsed.route.name], _HEADERS, orjson.dumps(body))
