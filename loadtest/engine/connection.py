"""HTTP/1.1 from the server's side: one asyncio protocol per connection, one `Exchange` per request, written
to without coroutines.

It knows bytes, not what they mean. Requests on one connection are answered in their order.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools
import orjson

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_JSON = b"application/json"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; "
    b"charset=utf-8\r\ntransfer-encoding: chunked\r\n"
)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Handler = Callable[["Exchange"], None]


class Exchange:
    """One request and its answer. `on_gone` is called when the client goes away before the answer is
    complete. `more_head`: further header lines of the answer, each with its CRLF.
    """

    __slots__ = (
        "_connection",
        "_streaming",
        "body",
        "complete",
        "headers",
        "method",
        "more_head",
        "on_gone",
        "path",
        "query",
    )

    def __init__(
        self,
        connection: "EngineConnection",
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes,
    ) -> None:
        self._connection = connection
        self._streaming = False
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body
        self.complete = False
        self.more_head = b""
        self.on_gone: Callable[[], None] | None = None

    def header(self, name: str) -> str | None:
        """The last value of a header, by its lower-case name."""
        return next((value for key, value in reversed(self.headers) if key == name), None)

    def json(self, status: int, content: object) -> None:
        """The whole answer as JSON."""
        self.respond(status, orjson.dumps(content), _JSON)

    def respond(self, status: int, body: bytes, content_type: bytes = b"", more: bytes = b"") -> None:
        """The whole answer; `more` are further header lines, each with its CRLF."""
        kind = b"content-type: %b\r\n" % content_type if content_type else b""
        reason = _REASONS.get(status, "Unknown").encode()
        head = b"HTTP/1.1 %d %b\r\nserver: uvicorn\r\ncontent-length: %d\r\n%b%b\r\n" % (
            status,
            reason,
            len(body),
            kind,
            more + self.more_head,
        )
        self._connection.write(head + body)
        self._finish()

    def start_stream(self) -> None:
        """The head of an event stream; what follows goes out with `chunk`."""
        if not self._streaming:
            self._streaming = True
            self._connection.write(b"%b%b\r\n" % (_STREAM_HEAD, self.more_head))

    def chunk(self, data: bytes) -> None:
        """One piece of the stream, now."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def raw(self, data: bytes) -> None:
        """Bytes as they are, framed or not: for faults."""
        self._connection.write(data)

    def end_stream(self) -> None:
        """The end that HTTP calls clean."""
        self._connection.write(b"0\r\n\r\n")
        self._finish()

    def cut(self, *, reset: bool) -> None:
        """Break the connection in the middle: with RST, or with FIN."""
        self.complete = True
        self._connection.cut(reset=reset)

    def _finish(self) -> None:
        self.complete = True
        self._connection.exchange_done(self)


class EngineConnection(asyncio.Protocol):
    """Parses requests and hands them to `handler` one after the other."""

    def __init__(self, handler: Handler, open_connections: set["EngineConnection"]) -> None:
        self._handler = handler
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._keep_alive = True
        self.idle_since = time.monotonic()
        self._start_message()

    def _start_message(self) -> None:
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []

    @property
    def idle(self) -> bool:
        """No request is being answered."""
        return not self._queue

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.cut(reset=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._open.discard(self)
        while self._queue:
            exchange = self._queue.popleft()
            if not exchange.complete and exchange.on_gone is not None:
                exchange.on_gone()

    # httptools callbacks

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        target = self._url.decode("latin-1")
        method = self._parser.get_method().decode("latin-1")
        self._keep_alive = self._parser.should_keep_alive()
        self._queue.append(Exchange(self, method, target, self._headers, b"".join(self._body)))
        self._start_message()
        if len(self._queue) == 1:
            self._handler(self._queue[0])

    # What an exchange may do

    def write(self, data: bytes) -> None:
        """Send now; a client that is gone gets nothing."""
        if self._transport is not None:
            self._transport.write(data)

    def exchange_done(self, exchange: Exchange) -> None:
        """The answer is out: close, or go on with the next request."""
        if not self._queue or self._queue[0] is not exchange:
            return
        self._queue.popleft()
        self.idle_since = time.monotonic()
        if not self._keep_alive:
            self.close()
        elif self._queue:
            self._handler(self._queue[0])

    def close(self) -> None:
        """Close after what was written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def cut(self, *, reset: bool) -> None:
        """Close in the middle of an answer."""
        if self._transport is None:
            return
        if not reset:
            self._transport.close()
            return
        raw: socket.socket = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()
