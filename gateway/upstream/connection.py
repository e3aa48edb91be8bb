"""HTTP/1.1 towards an engine: one connection, one request at a time, and a pool of them per instance.

It is our own code because it is the hot path: an httptools parser in an asyncio protocol costs about a third
of a client library. It knows bytes, not tokens: no metering, no JSON. Limits: response head 64 KiB, 256 KiB
buffered before the engine is paused. Errors: `UpstreamError` with a kind.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import cast
from urllib.parse import urlsplit

import httptools

from billing.wire.certificates import checked_by

HEAD_BYTES_MAX = 64 * 1024
BUFFER_BYTES_MAX = 256 * 1024
# An engine closes idle connections (uvicorn: 5 s). A connection that has been idle for longer than this is
# not used.
IDLE_SECONDS_MAX = 4.0
IDLE_CONNECTIONS_MAX = 512


class UpstreamFailure(StrEnum):
    """How an engine failed, as far as the connection shows."""

    REFUSED = "refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS = "tls"
    CLOSED_BEFORE_HEAD = "closed_before_head"
    CLOSED_IN_BODY = "closed_in_body"
    PROTOCOL = "protocol"


class UpstreamError(Exception):
    """The engine could not be reached, closed the connection, or did not speak HTTP. `kind` says which."""

    def __init__(self, kind: UpstreamFailure) -> None:
        super().__init__(kind.value)
        self.kind = kind


class UpstreamConnection(asyncio.Protocol):
    """One keep-alive connection. `send` a request, wait for the `head`, `read` the body."""

    __slots__ = (
        "_buffer", "_buffered_bytes", "_complete", "_enough", "_error", "_head_bytes", "_head_done", "_loop",
        "_parser", "_paused", "_raised", "_take", "_transport", "_waiter", "content_encoding", "content_type",
        "idle_since", "retry_after", "reusable", "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.idle_since = 0.0
        # One for all answers: it goes on to the next one only after one that keeps the connection.
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._complete = False
        self._paused = False
        self._error: UpstreamFailure | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._raised: Exception | None = None
        self._enough = False
        self.reusable = False
        self.status = 0
        self.content_type = b""
        self.content_encoding = b""
        self.retry_after = b""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:  # unrequested bytes: they must never become the next request's answer
            self._fail(UpstreamFailure.PROTOCOL)
            return
        if not self._head_done:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX + BUFFER_BYTES_MAX:
                self._fail(UpstreamFailure.PROTOCOL)
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(UpstreamFailure.PROTOCOL)
            return
        if self._take is None and self._buffered_bytes > BUFFER_BYTES_MAX:
            self.pause()
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._complete and self._error is None:
            self._error = (
                UpstreamFailure.CLOSED_IN_BODY if self._head_done else UpstreamFailure.CLOSED_BEFORE_HEAD
            )
        self.reusable = False
        self._tell()

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self.content_type = value
        elif lowered == b"content-encoding":
            self.content_encoding = value
        elif lowered == b"retry-after":
            self.retry_after = value

    def on_headers_complete(self) -> None:
        if self._complete:  # a second answer to one request: neither it nor the connection can be trusted
            self._error = UpstreamFailure.PROTOCOL
            self.reusable = False
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self._head_done = True

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._buffer.append(body)
        self._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._head_done and not self._complete:
            self._complete = True
            self.reusable = self._error is None and self._parser.should_keep_alive()

    # For the request's task

    @property
    def closed(self) -> bool:
        """Whether the transport is closed."""
        return self._transport is None or self._transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether the engine is not read for now."""
        return self._paused

    def send(self, request: bytes) -> None:
        """Write one whole request (head and body) and prepare for its response."""
        self._reset()
        if self._transport is None:
            raise UpstreamError(UpstreamFailure.CLOSED_BEFORE_HEAD)
        self._transport.write(request)

    async def head(self) -> int:
        """Wait for status and headers; returns the status."""
        while not self._head_done:
            if self._error is not None:
                raise UpstreamError(self._error)
            await self._wait()
        return self.status

    async def read(self, take: Callable[[bytes], bool]) -> None:
        """Hand the body over to `take`, piece by piece, until that says that it has enough or the response
        is complete. Raises what `take` raises.

        A piece is handed over as its bytes arrive: no task is woken for it.
        """
        self._take, self._enough = take, False
        self.resume()
        try:
            self._tell()
            while self._take is not None:
                await self._wait()
        finally:
            self._take = None
        if self._raised is not None:
            raise self._raised
        if self._error is not None and not (self._complete or self._enough):
            raise UpstreamError(self._error)

    def pause(self) -> None:
        """Stop reading from the engine, because the caller reads more slowly (backpressure)."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Undo `pause`."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close at once; an engine treats that as an abort of the running request."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _tell(self) -> None:
        """Something has arrived, or nothing more will."""
        if self._take is not None:
            if self._buffer:
                pieces, self._buffer = self._buffer, []
                self._buffered_bytes = 0
                try:
                    self._enough = self._take(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                except Exception as exc:
                    self._raised = exc
            if not (self._enough or self._complete or self._raised or self._error):
                return
            self._take = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _fail(self, kind: UpstreamFailure) -> None:
        self._error = kind
        self.close()
        self._tell()


class UpstreamPool:
    """The connections to one instance. It is unbounded, because reservations bound the open requests.
    `headers`: sent with each request. `trusted`: the authorities that certificates must be of, the usual ones
    unless given.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        connect_timeout_s: float,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._trusted = trusted
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[UpstreamConnection] = deque()
        authority = parts.netloc.encode()
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        self._fixed_head = (
            b" HTTP/1.1\r\nhost: "
            + authority
            + b"\r\n"
            + lines
            + b"content-type: application/json\r\ncontent-length: "
        )

    def request_bytes(self, path: bytes, headers: bytes, body: bytes) -> bytes:
        """A whole POST request: our own headers only, nothing of the caller's. `headers` are whole lines."""
        return b"POST %b%b%b%d\r\n%b\r\n%b" % (self._prefix, path, self._fixed_head, len(body), headers, body)

    async def acquire(self) -> tuple[UpstreamConnection, bool]:
        """A connection, and whether it was used before. If it was, a failure before the head may be due to
        its age and not to the engine.
        """
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and now - connection.idle_since < IDLE_SECONDS_MAX:
                return connection, True
            connection.close()
        return await self.connect(), False

    async def connect(self) -> UpstreamConnection:
        """A fresh connection."""
        loop = asyncio.get_running_loop()
        if self._tls and self._trusted is None:
            self._trusted = await asyncio.to_thread(checked_by)  # it reads a long file, once in a process
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(loop),
                    self._host,
                    self._port,
                    ssl=self._trusted if self._tls else None,
                )
        except TimeoutError as exc:
            raise UpstreamError(UpstreamFailure.CONNECT_TIMEOUT) from exc
        except ssl.SSLError as exc:
            raise UpstreamError(UpstreamFailure.TLS) from exc
        except OSError as exc:
            raise UpstreamError(UpstreamFailure.REFUSED) from exc
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Return a connection after its response; one that cannot be used again is closed."""
        connection.resume()
        if connection.reusable and not connection.closed and len(self._idle) < IDLE_CONNECTIONS_MAX:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close idle connections; used ones are closed when they are released."""
        while self._idle:
            self._idle.pop().close()
