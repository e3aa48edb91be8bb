"""The listening edge: HTTP/1.1 from the wire to ASGI, for uvicorn's server. It refuses what two parsers could
read differently and what takes too long. It knows no routes, no keys and no bodies.

It is a protocol of its own and not a subclass of uvicorn's httptools one, because it must keep answers in
order: a refused request is answered after those before it on the connection, no request after it runs, and
every request on the connection learns that the connection ends. Time limits cost a request nothing, because
one sweep checks all connections a few times a second.
"""

import asyncio
import logging
import urllib.parse
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from gateway.edge.cors import CrossOrigin, is_preflight
from gateway.edge.cycle import Headers, RequestCycle, Scope
from gateway.edge.head import (
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    TARGET_BYTES_MAX,
    WATCHED,
    InvalidHead,
    check_host,
    check_line,
    check_transfer_encoding,
    origin_form,
    refusal_bytes,
    refusal_of,
)
from gateway.edge.parser import AfterHead, new_parser
from gateway.edge.sweep import ListenLimits, Sweep
from gateway.edge.wire import Wire
from gateway.errors import GatewayError, InternalError, RequestTimeout

log = logging.getLogger(__name__)

# Requests that wait behind the one being answered. Reading pauses at the first number; the second can only be
# reached within one read.
PIPELINED_PAUSE = 8
PIPELINED_MAX = 64
# Pieces of one body. Chunks of a byte each would cost a hundred times their size in memory and time; 4 MiB in
# pieces of 256 bytes are allowed.
BODY_PIECES_MAX = 16 * 1024
_ASGI = {"version": "3.0", "spec_version": "2.3"}


# Which part of a request comes next on a connection. DONE: the request is complete and no other has begun.
# Plain numbers, because they are read ten times a request and a member of an enum takes 0.1 µs to read.
_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_DONE: Final = 3


class GatewayHttpProtocol(asyncio.Protocol):
    """One connection. Made by `listening_protocol`, called by uvicorn's server and by the parser (`on_…`)."""

    limits: ClassVar[ListenLimits]
    sweep: ClassVar[Sweep]
    cross_origin: ClassVar[CrossOrigin | None]
    # Called with the code of every refusal made here: the application never sees them.
    count_refusal: Callable[[str], None]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._root_path = config.root_path
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser: Any = new_parser(self)
        self._wire: Wire
        self._server: tuple[str, int | None] | None = None
        self._client: tuple[str, int] | None = None

        # The arriving request.
        self._receiving = _IDLE
        self._since = 0.0
        self._fresh = True
        self._head_bytes = 0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._has_host = self._is_chunked = self._expects_continue = self._is_upgrade = False
        self._body_pieces = 0
        self._arriving: RequestCycle | None = None
        # The requests being answered, one at a time, in order; and what ends the connection after them.
        self._answering: RequestCycle | None = None
        self._waiting: deque[tuple[RequestCycle, Scope]] = deque()
        self._refusal: GatewayError | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's behaves like one but has another class
        self._wire = Wire(transport, self._loop)
        self._server = get_local_addr(transport)
        self._client = get_remote_addr(transport)
        self._since = self._loop.time()
        connections: set[Any] = self._server_state.connections
        connections.add(self)
        self.sweep.start(self._loop, connections)

    def connection_lost(self, exc: Exception | None) -> None:
        connections: set[Any] = self._server_state.connections
        connections.discard(self)
        self._wire.lost = self._wire.closing = True
        self._waiting.clear()
        if self._answering is not None:
            self._answering.lose()
            self._answering = None
        self._arriving = None
        self._wire.resume_writing()
        self._parser = None

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self._wire.closing:
            return  # read only so that the caller can read our last answer
        if self._receiving == _HEAD:
            self._head_bytes += len(data)
            if (
                self._head_bytes > 2 * HEAD_BYTES_MAX
            ):  # a single endless header is not seen by on_header; exact counts are made there
                self._refuse(InvalidHead("The request head is too large."))
                return
        rest: bytes | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            refusal = refusal_of(error, data if self._answering is None else b"")
            if refusal is None:
                log.error("bug in a parser's callback", exc_info=error.__context__)
            self._refuse(refusal or InternalError())
        if rest is not None:
            self._continue_without_upgrade(rest)

    def pause_writing(self) -> None:
        self._wire.pause_writing()

    def resume_writing(self) -> None:
        self._wire.resume_writing()

    # httptools

    def on_message_begin(self) -> None:
        self._receiving = _HEAD
        self._since = self._loop.time()
        self._fresh = False
        self._head_bytes = 0
        self._target = b""
        self._headers = []
        self._has_host = self._is_chunked = self._expects_continue = self._is_upgrade = False

    def on_url(self, target: bytes) -> None:
        self._target += target
        if len(self._target) > TARGET_BYTES_MAX:
            self._target = b""
            raise InvalidHead("The request target is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiving != _HEAD:
            raise InvalidHead("Trailers are not accepted.")
        name = name.lower()
        headers = self._headers
        headers.append((name, value))
        if len(headers) > HEADERS_MAX:
            raise InvalidHead(f"The request has more than {HEADERS_MAX} headers.")
        if name in WATCHED:
            self._watch(name, value)

    def on_headers_complete(self) -> None:
        parser = self._parser
        version: str = parser.get_http_version()
        target = self._target
        check_line(version, self._has_host, self._is_chunked)
        head_bytes = len(target)
        for name, value in self._headers:
            head_bytes += len(name) + len(value) + 4
        if head_bytes > HEAD_BYTES_MAX:
            raise InvalidHead("The request head is too large.")
        if target[:1] != b"/" or target.find(b"#") >= 0:
            target = self._take_origin_form(target)
        if len(self._waiting) >= PIPELINED_MAX:
            raise InvalidHead("Too many requests were sent before their answers were read.")
        self._is_upgrade = parser.should_upgrade()
        self._receiving = _BODY
        self._body_pieces = 0
        method: str = parser.get_method().decode("ascii")
        always = self._server_state.default_headers
        cycle = RequestCycle(
            self._wire,
            always if self.cross_origin is None else always + self._cors_headers(),
            self._on_cycle_end,
            is_head=method == "HEAD",
            version_10=version == "1.0",
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            expects_continue=self._expects_continue,
        )
        self._arriving = cycle
        scope = self._scope(method, version, target, cycle)
        if self._answering is None:
            self._begin(cycle, scope)
        else:
            self._waiting.append((cycle, scope))
            if len(self._waiting) >= PIPELINED_PAUSE:
                self._wire.pause_reading()

    def on_body(self, piece: bytes) -> None:
        if self._arriving is None or self._arriving.complete:
            return
        self._body_pieces += 1
        if self._body_pieces > BODY_PIECES_MAX and self._arriving.body_s is None:
            raise InvalidHead("The request body comes in too many small chunks.")
        self._arriving.feed(piece)

    def on_message_complete(self) -> None:
        if (
            self._is_upgrade
        ):  # the parser believes that the body is no longer HTTP; the one that takes over will know its end
            return
        self._receiving = _DONE
        if self._arriving is not None:
            self._arriving.end_body()
            self._arriving = None

    # uvicorn's server

    def shutdown(self) -> None:
        """Close the connection once everything received so far is answered."""
        if self._answering is None:
            self._wire.close()
        elif self._waiting:
            self._waiting[-1][0].keep_alive = False
        else:
            self._answering.keep_alive = False

    # The sweep

    def check(self, now: float) -> None:
        """Apply the time limits to this connection."""
        wire = self._wire
        limits = self.limits
        wire.check(now, limits.write_stall_s, limits.linger_s)
        if wire.closing or self._refusal is not None:
            return
        if wire.read_paused:
            self._since = now  # the caller is waiting for us
            return
        waited_s = now - self._since
        if self._receiving == _HEAD:
            if waited_s > limits.head_s:
                self._refuse(_late("head"))
        elif self._receiving == _BODY:
            own_s = None if self._arriving is None else self._arriving.body_s
            if waited_s > (limits.body_s if own_s is None else own_s):
                self._refuse(_late("body"))
        elif self._answering is None and waited_s > (limits.head_s if self._fresh else limits.idle_s):
            wire.close()  # nothing was asked, so there is nothing to answer

    # Own

    def _watch(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self._has_host:
                raise InvalidHead("The request has several Host headers.")
            check_host(value)
            self._has_host = True
        elif name == b"transfer-encoding":
            check_transfer_encoding(value)
            self._is_chunked = True
        elif value.lower() == b"100-continue":
            self._expects_continue = True

    def _take_origin_form(self, target: bytes) -> bytes:
        self._target, authority = origin_form(target)
        if authority is not None:
            self._headers = [(name, authority if name == b"host" else value) for name, value in self._headers]
        return self._target

    def _cors_headers(self) -> Headers:
        return [] if self.cross_origin is None else self.cross_origin.answer_headers(self._headers)

    def _scope(self, method: str, version: str, target: bytes, cycle: RequestCycle) -> Scope:
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        root_path = self._root_path
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": method,
            "scheme": "http",
            "server": self._server,
            "client": self._client,
            "root_path": root_path,
            "path": root_path + path,
            "raw_path": root_path.encode("ascii") + raw_path if root_path else raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
            "extensions": {"taas.connection": cycle},
        }

    def _begin(self, cycle: RequestCycle, scope: Scope) -> None:
        self._answering = cycle
        app = self._app
        if self.cross_origin is not None and is_preflight(scope["method"], scope["headers"]):
            app = self.cross_origin.answer_preflight
        task = self._loop.create_task(cycle.run(app, scope))
        tasks: set[Any] = self._server_state.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _on_cycle_end(self) -> None:
        """A response is complete: serve the next request, or close."""
        self._server_state.total_requests += 1
        self._answering = None
        if self._wire.closing:
            self._waiting.clear()
            return
        if self._waiting:
            cycle, scope = self._waiting.popleft()
            self._begin(cycle, scope)
            if len(self._waiting) < PIPELINED_PAUSE:
                self._wire.resume_reading()
        elif self._refusal is not None:
            self._write_refusal(self._refusal)
        else:
            if self._receiving == _DONE:
                self._receiving = _IDLE
                self._since = self._loop.time()
            self._wire.resume_reading()

    def _refuse(self, refusal: GatewayError) -> None:
        """The arriving request is broken: answer those before it, then refuse it, and read no further."""
        self._refusal = refusal
        broken = self._arriving
        self._arriving = None
        if broken is not None and self._waiting and self._waiting[-1][0] is broken:
            self._waiting.pop()
        elif broken is not None and self._answering is broken:
            self._answering = None
            if broken.started:
                self._wire.close(linger=True)
            broken.lose()
        if self._answering is None and not self._wire.closing:
            self._write_refusal(refusal)

    def _write_refusal(self, refusal: GatewayError) -> None:
        self.count_refusal(refusal.code)
        self._wire.transport.write(refusal_bytes(refusal, self._target, self._cors_headers()))
        self._wire.close(linger=True)

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """An offer of another protocol (h2c, WebSocket) is declined: the request stays as it is and its body
        follows. The parser stops at such an offer, so another parser takes over after a head with the same
        framing. Java's own HTTP client offers h2c by default.
        """
        framing = b"transfer-encoding: chunked\r\n" if self._is_chunked else b""
        for name, value in self._headers:
            if name == b"content-length":
                framing = b"content-length: %b\r\n" % value
            elif name == b"connection" and b"close" in value.lower():
                framing += b"connection: close\r\n"
        self._is_upgrade = False
        self._parser = new_parser(AfterHead(self))
        self.data_received(b"POST / HTTP/1.1\r\n%b\r\n%b" % (framing, rest))


def listening_protocol(
    limits: ListenLimits, count_refusal: Callable[[str], None], cross_origin: CrossOrigin | None = None
) -> type[GatewayHttpProtocol]:
    """The protocol class for one server. Without `cross_origin`, no page of another origin may read an
    answer.
    """
    owned = {
        "limits": limits,
        "sweep": Sweep(limits),
        "count_refusal": staticmethod(count_refusal),
        "cross_origin": cross_origin,
    }
    return type("GatewayHttpProtocol", (GatewayHttpProtocol,), owned)


def _late(part: str) -> RequestTimeout:
    error = RequestTimeout()
    error.message = f"The request {part} did not arrive in time."
    return error
