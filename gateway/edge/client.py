"""The caller's side of a request: sends the answer through ASGI, in the caller's dialect. It knows headers
and framing, no tokens.

The head is sent with the first piece, so that a failure before it can become a proper error response. A
heartbeat sends the head earlier.
"""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from secrets import token_hex
from typing import Any, Protocol

from gateway.errors import GatewayError, error_body, error_event, error_headers
from gateway.request import AnswerForm, Dialect, RouteSpec

Headers = list[tuple[bytes, bytes]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# They say only that the connection is alive. Clients of each dialect skip theirs.
_HEARTBEATS = {Dialect.OPENAI: b": ping\n\n", Dialect.ANTHROPIC: b'event: ping\ndata: {"type": "ping"}\n\n'}
_NUMBER = re.compile(rb'"sequence_number": ?(\d{1,18})\b')


@lru_cache(maxsize=4096)
def opaque_instance(instance: str) -> bytes:
    """An instance's name for callers: they can tell instances apart, and learn nothing else."""
    return hashlib.blake2s(instance.encode(), digest_size=6).hexdigest().encode()


def new_request_id() -> str:
    """A new id. Refused requests have one too, because people ask about them."""
    return "req_" + token_hex(12)


def id_headers(dialect: Dialect, request_id: str) -> Headers:
    """The headers in which the SDK of a dialect looks for the request id, and `x-request-id` always."""
    headers = [(b"x-request-id", request_id.encode())]
    if dialect is Dialect.ANTHROPIC:
        headers.append((b"request-id", request_id.encode()))
    return headers


class ClientConnection(Protocol):
    """What the listener offers of the caller's connection (`scope["extensions"]["taas.connection"]`)."""

    def is_disconnected(self) -> bool:
        """Whether the caller has disconnected."""

    def on_disconnect(self, callback: Callable[[], None] | None) -> None:
        """Call back once when the caller disconnects, at once if it has. None removes the callback."""

    def stalled_ms(self) -> float:
        """For how long the caller has not read what was written."""

    def abort(self) -> None:
        """Close without waiting."""

    def body_arrived(self) -> bool:
        """Whether the whole request body has arrived."""

    def pause_body(self) -> None:
        """Read nothing more of the body before it is asked for again."""


class AsgiClient:
    """Implements `gateway.forward.Client`. `headers` are those of a good answer (request id, limits,
    class, instance).
    """

    __slots__ = (
        "_ended", "_last", "_route", "_send", "_started_at", "connection", "headers", "instance",
        "request_id", "rounds_silent", "started",
    )  # fmt: skip

    def __init__(self, send: Send, route: RouteSpec, request_id: str, started_at: float) -> None:
        self._send = send
        self._route = route
        self._started_at = started_at
        self.request_id = request_id
        self.headers: Headers = id_headers(route.dialect, request_id)
        # A function, because a failed attempt may have been on another instance.
        self.instance: Callable[[], str] | None = None
        self.connection: ClientConnection | None = None
        self.started = False
        self.rounds_silent = 0  # of the heartbeats, since the last piece
        self._last = b""
        self._ended = False

    @property
    def answering(self) -> bool:
        """Whether a piece of the answer has been sent."""
        return bool(self._last)

    async def send(self, piece: bytes) -> None:
        """Send a piece of a stream. The first piece sends the head, too."""
        if not self.started:
            await self._start(200, _STREAM_HEADERS)
        self._last = piece
        self.rounds_silent = 0
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes) -> None:
        """The last piece of a stream."""
        if not self.started:
            await self._start(200, _STREAM_HEADERS)
        self._ended = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def heartbeat(self) -> None:
        """Send something that clients do not take for a piece of the stream.

        If it sends the head, that names no instance, as another instance may answer. It sends nothing to a
        caller that does not read, so it never waits.
        """
        if self._ended or (self.connection is not None and self.connection.stalled_ms()):
            return
        self.rounds_silent = 0
        if not self.started:
            await self._start(200, _STREAM_HEADERS, names_instance=False)
        await self._send(
            {"type": "http.response.body", "body": _HEARTBEATS[self._route.dialect], "more_body": True}
        )

    async def send_json(self, answer: bytes) -> None:
        """Send a complete JSON answer."""
        self._ended = True
        await self._start(
            200, [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        )
        await self._send({"type": "http.response.body", "body": answer, "more_body": False})

    async def end_with_error(self, error: GatewayError) -> None:
        """End a stream that has started with one error event, so that the end does not look like success."""
        number = 0
        if (
            self._route.answer is AnswerForm.RESPONSE
        ):  # its events are numbered: this one follows the last that was sent
            numbers = _NUMBER.findall(self._last)
            number = int(numbers[-1]) + 1 if numbers else 0
        await self.end(error_event(error, self._route, self.request_id, number))

    async def refuse(self, error: GatewayError) -> None:
        """Send an error response instead of an answer."""
        self._ended = True
        body = error_body(error, self._route.dialect, self.request_id)
        await self._start(error.status, [*error_headers(error), (b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: Headers, *, names_instance: bool = True) -> None:
        self.started = True
        if self.instance is not None and names_instance:
            headers = [*headers, (b"x-taas-instance", opaque_instance(self.instance()))]
        took_ms = int((time.monotonic() - self._started_at) * 1000)
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*self.headers, (b"openai-processing-ms", b"%d" % took_ms), *headers],
            }
        )
