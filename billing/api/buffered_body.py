"""Reads a request's whole body, up to a cap, before a route sees it, and refuses JSON with duplicate keys.
Pure ASGI.

Two bodies can only be compared when they are complete. If a key occurs twice, a caller cannot know which
value counts.
"""

import json
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.api.errors import error_response, is_plain

# A ramp of a thousand steps takes a quarter of it, and so does a reclaim that names two thousand instances.
BODY_BYTES_MAX: Final = 256 * 1024
_TOO_LARGE: Final = f"The body is larger than {BODY_BYTES_MAX} bytes."


class BufferedBody:
    """Calls the application with a `receive` that returns the body in one piece."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """413 for a body that is too large, as soon as that is known; 400 for a key given twice."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > BODY_BYTES_MAX:
            await _too_large()(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > BODY_BYTES_MAX:
                await _too_large()(scope, receive, send)
                return
        twice = _key_given_twice(bytes(body))
        if twice is not None:
            named = f"{twice!r} is" if is_plain(twice) else "a key is"
            param = twice if is_plain(twice) else None
            message_text = f"The body is ambiguous: {named} given twice in one object."
            await error_response(400, message_text, code="duplicate_key", param=param)(scope, receive, send)
            return
        await self._app(scope, _replaying(bytes(body), receive), send)


def _replaying(body: bytes, receive: Receive) -> Receive:
    given = False

    async def receive_whole() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_whole


class _GivenTwice(Exception):
    pass


def _key_given_twice(body: bytes) -> str | None:
    """Whether a key occurs twice in an object, at any depth. A body that is not JSON is for the route to
    refuse.
    """
    if not body:
        return None
    try:
        json.loads(body, object_pairs_hook=_refuse_twice)
    except _GivenTwice as exc:
        name: str = exc.args[0]
        return name
    except (ValueError, RecursionError):
        return None
    return None


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise _GivenTwice(name)
        seen.add(name)


def _too_large() -> ASGIApp:
    return error_response(413, _TOO_LARGE, code="body_too_large", headers={"connection": "close"})
