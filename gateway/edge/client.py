"""The caller's side of a request: writes what is passed on, in the caller's dialect. Knows headers, no
tokens. Nothing here waits: what the caller does not take in time is buffered, and `write` says so.

The head is sent with the first piece, so that a failure before it can become a proper error response. A
heartbeat sends the head earlier.
"""

import hashlib
import re
import time
from collections.abc import Callable
from functools import lru_cache
from os import urandom
from typing import Protocol

from gateway.error_form import error_body, error_event, error_headers
from gateway.errors import GatewayError
from gateway.request import AnswerForm, Dialect, RouteSpec

Headers = list[tuple[bytes, bytes]]

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
    """An instance's name for callers: it distinguishes instances and reveals nothing else."""
    return hashlib.blake2s(instance.encode(), digest_size=6).hexdigest().encode()


def new_request_id(_: object = None) -> str:
    """A new id, whatever was asked. Refused requests have one too, because people ask about them."""
    return "req_" + urandom(12).hex()


def id_headers(dialect: Dialect, request_id: str) -> Headers:
    """The headers in which the SDK of a dialect looks for the request id, and `x-request-id` always."""
    headers = [(b"x-request-id", request_id.encode())]
    if dialect is Dialect.ANTHROPIC:
        headers.append((b"request-id", request_id.encode()))
    return headers


class ClientConnection(Protocol):
    """What the gateway may do with the caller's connection (`scope["extensions"]["taas.connection"]`)."""

    def begin(self, status: int, headers: Headers) -> None:
        """Begin the response. Its head is sent with the first piece. What is written after the client has
        disconnected is dropped.
        """

    def write(self, piece: bytes, *, more: bool) -> bool:
        """Write a piece of the body; without `more` it is the last one. Returns whether the caller takes less
        than is written.
        """

    def on_drained(self, callback: Callable[[], None]) -> None:
        """Call back once when the client has read what was written, or has disconnected."""

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

    def take_body(self) -> bytes:
        """The part of the body that has arrived and was not taken yet."""

    def pause_body(self) -> None:
        """Read no more of the body until it is asked for again."""

    def expect_body_within(self, seconds: float) -> None:
        """The body may take so long to arrive, in however many pieces: it is passed on as it comes."""


class Client:
    """Whoever waits for the answer. `headers` are those of a good answer (request id, limits, class,
    instance). `started`: the head has been sent, with the first piece or with a heartbeat before it.
    """

    __slots__ = (
        "_ended", "_last", "_route", "_started_at", "_write", "connection", "headers", "instance",
        "request_id", "rounds_silent", "started",
    )  # fmt: skip

    def __init__(
        self, connection: ClientConnection, route: RouteSpec, request_id: str, started_at: float
    ) -> None:
        self.connection = connection
        self._write = connection.write
        self._route = route
        self._started_at = started_at
        self.request_id = request_id
        self.headers: Headers = id_headers(route.dialect, request_id)
        # A function, because a failed attempt may have been on another instance.
        self.instance: Callable[[], str] | None = None
        self.started = False
        self.rounds_silent = 0  # of the heartbeats, since the last piece
        self._last = b""
        self._ended = False

    @property
    def answering(self) -> bool:
        """Whether a piece of the answer has been sent."""
        return bool(self._last)

    def copy_to(self, take: Callable[[bytes, bool], None]) -> None:
        """From now on `take` gets each piece of the answer, and whether more follows, before the caller does.
        Heartbeats are no part of the answer.
        """
        write = self._write

        def both(piece: bytes, *, more: bool) -> bool:
            take(piece, more)
            return write(piece, more=more)

        self._write = both

    def replay(self, status: int, answer: bytes, headers: Headers, *, stream: bool) -> None:
        """Send an answer that was sent before."""
        self._ended = True
        if stream:
            headers = _STREAM_HEADERS + headers
        else:
            length = (b"content-length", b"%d" % len(answer))
            headers = [(b"content-type", b"application/json"), length, *headers]
        self._start(status, headers)
        self._write(answer, more=False)

    def send(self, piece: bytes) -> bool:
        """Send a piece of a stream. The first piece sends the head, too. Returns whether the caller takes
        less than is sent.
        """
        if not self.started:
            self._start(200, _STREAM_HEADERS)
        self._last = piece
        self.rounds_silent = 0
        return self._write(piece, more=True)

    def end(self, piece: bytes) -> None:
        """The last piece of a stream."""
        if not self.started:
            self._start(200, _STREAM_HEADERS)
        self._ended = True
        self._write(piece, more=False)

    def heartbeat(self) -> None:
        """Send something that clients do not take for a piece of the stream.

        If it sends the head, that names no instance, as another instance may answer. It sends nothing to a
        caller that does not read.
        """
        if self._ended or self.connection.stalled_ms():
            return
        self.rounds_silent = 0
        if not self.started:
            self._start(200, _STREAM_HEADERS, names_instance=False)
        self.connection.write(_HEARTBEATS[self._route.dialect], more=True)

    def send_json(self, answer: bytes) -> None:
        """Send a complete JSON answer."""
        self._ended = True
        self._start(
            200, [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        )
        self._write(answer, more=False)

    def end_with_error(self, error: GatewayError) -> None:
        """End a stream that has started with one error event, so that the end does not look like success."""
        number = 0
        if (
            self._route.answer is AnswerForm.RESPONSE
        ):  # its events are numbered: this one follows the last that was sent
            numbers = _NUMBER.findall(self._last)
            number = int(numbers[-1]) + 1 if numbers else 0
        self.end(error_event(error, self._route, self.request_id, number))

    def refuse(self, error: GatewayError) -> None:
        """Send an error response instead of an answer."""
        self._ended = True
        body = error_body(error, self._route.dialect, self.request_id)
        self._start(error.status, [*error_headers(error), (b"content-length", str(len(body)).encode())])
        self._write(body, more=False)

    def _start(self, status: int, headers: Headers, *, names_instance: bool = True) -> None:
        self.started = True
        if self.instance is not None and names_instance:
            headers = [*headers, (b"x-taas-instance", opaque_instance(self.instance()))]
        took_ms = int((time.monotonic() - self._started_at) * 1000)
        processing = (b"openai-processing-ms", b"%d" % took_ms)
        self.connection.begin(status, [*self.headers, processing, *headers])
