"""One request on a connection and its response: ASGI's receive and send, and what the gateway may know of the
caller's connection.

It has no reference to its scope, because the scope refers to it (`extensions["taas.connection"]`): the cycle
of two references would be left to the garbage collector.
"""

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from billing.wire.routes import dialect_of_path
from gateway.edge.client import id_headers, new_request_id
from gateway.edge.wire import READ_BYTES_MAX, Wire
from gateway.error_form import error_body, error_headers
from gateway.errors import InternalError

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Scope = dict[str, Any]
Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}
_BODILESS = frozenset({204, 304})
# Headers that say how a message is framed.
_FRAMING = frozenset({b"content-length", b"connection", b"transfer-encoding"})


class RequestCycle:
    """From a complete head to a complete response. `lose` ends it when the client disconnects first."""

    __slots__ = (
        "_body_bytes", "_body_delivered", "_bytes_left", "_chunked", "_default_headers", "_expects_continue",
        "_head", "_is_head", "_on_disconnect", "_on_end", "_pieces", "_version_10", "_waiters", "_wire",
        "body_s", "complete", "disconnected", "keep_alive", "more_body", "started",
    )  # fmt: skip

    def __init__(
        self,
        wire: Wire,
        default_headers: Headers,
        on_end: Callable[[], None],
        *,
        is_head: bool,
        version_10: bool,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self._wire = wire
        self._default_headers = default_headers
        self._on_end = on_end
        self._is_head = is_head
        self._version_10 = version_10
        self._expects_continue = expects_continue
        self.keep_alive = keep_alive
        # How long the body may take to arrive, if that is not what holds for all.
        self.body_s: float | None = None
        self._pieces: list[bytes] = []
        self._body_bytes = 0
        self._body_delivered = False
        self.more_body = True
        self._waiters: list[asyncio.Future[None]] = []
        self._on_disconnect: Callable[[], None] | None = None
        self.disconnected = False
        self.started = False
        self.complete = False
        self._chunked = False
        self._head = b""
        # The bytes still to be sent of a response with a length. None: the end of the connection is the end
        # of the body.
        self._bytes_left: int | None = 0

    # What the gateway may know (gateway.client.ClientConnection)

    def is_disconnected(self) -> bool:
        """Whether the client disconnected before the response was complete."""
        return self.disconnected

    def on_disconnect(self, callback: Callable[[], None] | None) -> None:
        """Call back once, synchronously, when the client disconnects; at once if it has. None removes the
        callback.
        """
        self._on_disconnect = callback
        if callback is not None and self.disconnected:
            self._on_disconnect = None
            callback()

    def stalled_ms(self) -> float:
        """For how long the client has read nothing of what waits for it."""
        return self._wire.stalled_ms()

    def was_stalled(self) -> bool:
        """Whether the connection was closed because the client did not read, and not because it
        disconnected.
        """
        return self._wire.stalled

    def abort(self) -> None:
        """Close the connection, unless the response is complete: the connection may belong to another request
        by then.
        """
        if not self.complete:
            self._wire.abort()

    def body_arrived(self) -> bool:
        """Whether the whole request body has arrived."""
        return not self.more_body

    def pause_body(self) -> None:
        """Read no more of the body until `receive` is called again. The caller's time does not run
        meanwhile.
        """
        if self.more_body:
            self._wire.pause_reading()

    def expect_body_within(self, seconds: float) -> None:
        """The body may take so long to arrive, in however many pieces."""
        self.body_s = seconds

    def take_body(self) -> bytes:
        """The part of the body that has arrived and was not taken yet."""
        pieces, self._pieces = self._pieces, []
        self._body_bytes = 0
        self._body_delivered = not self.more_body
        self._wire.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def on_drained(self, callback: Callable[[], None]) -> None:
        """Call back once when the client has read what was written, or has disconnected."""
        self._wire.on_drained(callback)

    def begin(self, status: int, headers: Headers) -> None:
        """Begin the response. Its head is sent with the first piece. What is written after the client has
        disconnected is dropped.
        """
        if self.disconnected or self._wire.closing:
            return
        if self.started:
            raise RuntimeError("the response has begun already")
        self._start(status, headers)

    def write(self, piece: bytes, *, more: bool) -> bool:
        """Write a piece of the body; without `more` it is the last one. Returns whether the client takes less
        than is written.
        """
        if self.disconnected or self._wire.closing:
            return False
        if not self.started or self.complete:
            raise RuntimeError(f"a piece {'after' if self.complete else 'before'} the response")
        if self._is_head:
            piece = b""
        head, self._head = self._head, b""  # with the first piece: one system call less
        if self._chunked:
            if piece:
                end = b"" if more else b"0\r\n\r\n"
                self._wire.transport.write(b"%b%x\r\n%b\r\n%b" % (head, len(piece), piece, end))
            elif head or not more:
                self._wire.transport.write(head if more else head + b"0\r\n\r\n")
        else:
            if self._bytes_left is not None:
                self._bytes_left -= len(piece)
                if self._bytes_left < 0 or (self._bytes_left and not more):
                    raise RuntimeError("the response is not as long as its content-length")
            if head or piece:
                self._wire.transport.write(head + piece)
        if not more:
            self.complete = True
            self._pieces.clear()  # a body that nobody asked for
            self._on_disconnect = None
            if self._waiters:
                self._wake()
            if not self.keep_alive:
                self._wire.close(linger=self.more_body)
            self._on_end()
        return self._wire.write_paused

    # What the connection tells

    def feed(self, piece: bytes) -> None:
        """A piece of the body has arrived."""
        self._pieces.append(piece)
        self._body_bytes += len(piece)
        if self._body_bytes > READ_BYTES_MAX:
            self._wire.pause_reading()
        if self._waiters:
            self._wake()

    def end_body(self) -> None:
        """The body is complete."""
        self.more_body = False
        if self._waiters:
            self._wake()

    def lose(self) -> None:
        """The client has disconnected, or its request turned out to be broken."""
        if self.complete or self.disconnected:
            return
        self.disconnected = True
        self._wake()
        callback, self._on_disconnect = self._on_disconnect, None
        if callback is not None:
            callback()

    # ASGI

    async def run(self, app: App, scope: Scope) -> None:
        """Run the application to its end. Whatever it does, the caller gets an answer or a broken connection,
        never a false success.
        """
        if self.disconnected:  # refused, or disconnected, before its turn
            return
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._wire.close()
            raise
        except Exception:
            log.exception("bug in the application")
            self._answer_bug(scope)
        else:
            if not (self.complete or self.disconnected or self._wire.closing):
                log.error("the application ended without completing its response")
                self._answer_bug(scope)

    async def receive(self) -> Message:
        """The next piece of the body: all that has arrived. After the last one it waits for the end of the
        response or of the connection.
        """
        if self._expects_continue and not self._wire.closing:
            self._expects_continue = False
            self._wire.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.disconnected or self.complete):
            if self._pieces or not (self.more_body or self._body_delivered):
                return {"type": "http.request", "body": self.take_body(), "more_body": self.more_body}
            self._wire.resume_reading()
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send a part of the response. It waits while the client does not read, and does nothing after it has
        disconnected.
        """
        if self._wire.write_paused:
            await self._wire.drain()
        if message["type"] == "http.response.start":
            self.begin(message["status"], message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.write(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected {message['type']}")

    def _start(self, status: int, headers: Headers) -> None:
        self._expects_continue = False
        if self.more_body:
            self.keep_alive = (
                False  # the rest of the request is not read: nothing of it may be taken for the next request
            )
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        length: int | None = None
        for name, value in (*self._default_headers, *headers):
            if name in _FRAMING:
                if name == b"content-length":
                    length = int(value)
                elif name == b"connection":
                    self.keep_alive = self.keep_alive and b"close" not in value.lower()
                    continue
                else:
                    continue  # framing is ours
            lines.append(name + b": " + value)
        bodiless = self._is_head or status in _BODILESS
        self._chunked = length is None and not bodiless and not self._version_10
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        elif length is None and not bodiless:
            self.keep_alive = False  # the end of the connection is the end of the body
        if not self.keep_alive:
            lines.append(b"connection: close")
        lines += (b"", b"")
        head = b"\r\n".join(lines)
        # A header with a line end in it would be a second header, or a second response.
        line_ends = len(lines) - 1
        if head.count(b"\n") != line_ends or head.count(b"\r") != line_ends or head.count(0):
            raise RuntimeError("a response header holds a line end or NUL")
        self._bytes_left = 0 if bodiless else length
        self.started = True
        self._head = head

    def _answer_bug(self, scope: Scope) -> None:
        if self.complete:
            return  # the caller has its answer, and the connection may be another request's by then
        if self.started and not self._head:
            self._wire.close()  # mid-body: the missing rest shows the caller that it failed
            return
        error, request_id, dialect = InternalError(), new_request_id(), dialect_of_path(scope["path"])
        body = error_body(error, dialect, request_id)
        headers = [
            *error_headers(error),
            *id_headers(dialect, request_id),
            (b"content-length", b"%d" % len(body)),
        ]
        self.keep_alive = self.started = False
        self.begin(error.status, headers)
        self.write(body, more=False)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
