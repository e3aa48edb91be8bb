"""Which web pages may read answers (CORS): headers for every answer, and the answer to a preflight. It knows
no routes and no keys.

It is part of the listener because a page must be able to read refusals, too, and some are made before the
application runs. It never asks for the browser's credentials (cookies): a page sends its API key itself.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gateway.edge.client import new_request_id

Headers = list[tuple[bytes, bytes]]

ANY = b"*"
# The longest time for which Chromium remembers a preflight.
MAX_AGE_S = 7200
# What the SDKs send, and our own. A prefix ends in a hyphen.
_HEADERS_ALLOWED = (
    b"accept", b"authorization", b"content-type", b"idempotency-key", b"user-agent", b"x-api-key",
    b"x-client-request-id", b"x-request-id", b"x-session-id",
)  # fmt: skip
_PREFIXES_ALLOWED = (b"anthropic-", b"openai-", b"x-stainless-", b"x-taas-")
_METHODS_ALLOWED = b"GET, HEAD, POST, DELETE"
# Browsers know no prefixes here. The star covers future headers; browsers that do not know the star read the
# names.
_EXPOSED = (
    "*", "x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry",
    "openai-processing-ms",
    *(f"x-ratelimit-{word}-{what}" for word in ("limit", "remaining", "reset") for what in ("requests",
    "tokens")),
    *(
        f"anthropic-ratelimit-{what}-{word}"
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
        for word in ("limit", "remaining", "reset")
    ),
    "x-taas-class", "x-taas-instance", "x-taas-ignored", "original-request", "idempotent-replayed",
)  # fmt: skip
_EXPOSED_LINE = ", ".join(_EXPOSED).encode()
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._~%\[\]:-]+")


@dataclass(frozen=True, slots=True)
class CrossOrigin:
    """The origins whose pages may read answers; `*` among them means all."""

    origins: frozenset[bytes]

    def answer_headers(self, request_headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The headers of every answer to this request."""
        headers = [(b"vary", b"Origin")]
        allowed = self._allowed(_value(request_headers, b"origin"))
        if allowed is not None:
            headers.append((b"access-control-allow-origin", allowed))
            headers.append((b"access-control-expose-headers", _EXPOSED_LINE))
        return headers

    async def answer_preflight(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer a preflight, as an ASGI application. An origin that is not allowed gets no permission, which
        is how browsers learn that.
        """
        headers = [(b"x-request-id", new_request_id().encode())]
        if self._allowed(_value(scope["headers"], b"origin")) is not None:
            asked = _value(scope["headers"], b"access-control-request-headers") or b""
            headers += [
                (b"vary", b"Access-Control-Request-Headers"),
                (b"access-control-allow-methods", _METHODS_ALLOWED),
                (b"access-control-allow-headers", b", ".join(_allowed_of(asked))),
                (b"access-control-max-age", b"%d" % MAX_AGE_S),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _allowed(self, origin: bytes | None) -> bytes | None:
        if origin is None:
            return None
        if ANY in self.origins:
            return ANY
        return origin if origin in self.origins else None


def is_preflight(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the request is a browser's preflight."""
    return method == "OPTIONS" and _value(headers, b"access-control-request-method") is not None


def parse_origins(text: str) -> frozenset[bytes]:
    """Read the comma-separated list of the setting. Raises ValueError for a text that no browser sends as an
    origin.
    """
    origins = [word.strip().lower() for word in text.split(",") if word.strip()]
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"{origin!r} is no origin: give scheme://host[:port] without a path, or *")
    return frozenset(origin.encode() for origin in origins)


def _value(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)


def _allowed_of(asked: bytes) -> list[bytes]:
    """The headers that are always allowed, then those of the requested ones with an allowed prefix."""
    names = {word.strip().lower() for word in asked.split(b",")}
    return [*_HEADERS_ALLOWED, *sorted(name for name in names if name.startswith(_PREFIXES_ALLOWED))]
