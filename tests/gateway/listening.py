"""A real server on a real socket, with a tiny application, for tests of the listening edge."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from gateway.body import read_body
from gateway.error_form import error_body, error_headers
from gateway.errors import GatewayError
from gateway.lifecycle import Lifecycle
from gateway.metrics import Metrics
from gateway.process.serve import GatewayServer, make_server
from gateway.process.sockets import listening_sockets, port_of
from gateway.request import Dialect
from gateway.settings import GatewaySettings
from gateway.waiting.receiving import ReceivePolicy, Receiving

BODY_BYTES_MAX = 256 * 1024


class TinyApp:
    """Answers by path, and writes down what it ran and who left."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.left: list[str] = []
        self.stalled: list[bool] = []
        self.received_bytes = 0
        self.receiving = Receiving(ReceivePolicy(1024 * 1024, 1024 * 1024, 2.0))
        self.held: dict[str, asyncio.Event] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self.loop = asyncio.get_running_loop()
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        path = scope["raw_path"].decode()
        self.ran.append(path)
        connection = scope["extensions"]["taas.connection"]
        connection.on_disconnect(lambda: self._left(path, connection))
        match path:
            case "/body" | "/v1/messages":
                await self._echo(scope, receive, send)
            case "/early":
                await answer(send, 401, {"ran": path})
            case "/stream":
                await self._stream(scope, send)
            case "/hold":
                event = self.held.setdefault(scope["query_string"].decode(), asyncio.Event())
                await event.wait()
                await answer(send, 200, {"ran": path})
            case "/large":
                await answer(send, 200, "x" * 20_000_000)
            case "/abort":
                connection.abort()
                await answer(send, 200, {})
            case "/late":
                await answer(send, 200, {"stalled_ms": connection.stalled_ms()})
                connection.abort()
            case "/bug":
                raise ValueError("canary-7f3a")
            case "/head-bug":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                raise ValueError("canary-7f3a")
            case "/late-bug":
                await answer(send, 200, {"ran": path})
                raise ValueError("canary-7f3a")
            case "/header":
                await send(
                    {
                        "type": "http.response.start",
                        "status": 200,
                        "headers": [(b"x-a", b"b\r\nset-cookie: c")],
                    }
                )
            case _:
                await answer(
                    send,
                    200,
                    {"ran": path, "headers": [[n.decode(), v.decode()] for n, v in scope["headers"]]},
                )

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting() -> Any:
            message = await receive()
            self.received_bytes += len(message.get("body", b""))
            return message

        try:
            body = await read_body(scope, counting, BODY_BYTES_MAX, self.receiving, "ten_a")
        except GatewayError as error:
            text = error_body(error, Dialect.OPENAI, "req_x")
            headers = [*error_headers(error), (b"content-length", b"%d" % len(text))]
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": text})
        else:
            await answer(
                send, 200, {"bytes": len(body), "headers": [n.decode() for n, _ in scope["headers"]]}
            )

    async def _stream(self, scope: Any, send: Any) -> None:
        connection = scope["extensions"]["taas.connection"]
        query = parse_qs(scope["query_string"].decode())
        pieces, size = int(query["pieces"][0]), int(query["size"][0])
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        for _ in range(pieces):
            if connection.is_disconnected():
                return
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _left(self, path: str, connection: Any) -> None:
        self.left.append(path)
        self.stalled.append(connection.was_stalled())

    def release(self, name: str = "") -> None:
        """Let a held request answer."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.held[name].set)


async def answer(send: Any, status: int, content: object) -> None:
    text = json.dumps(content).encode()
    await send({
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": text})


class Listening:
    """A running server: its port, its application, its figures."""

    def __init__(self, app: TinyApp, server: GatewayServer, metrics: Metrics, port: int) -> None:
        self.app = app
        self.server = server
        self.metrics = metrics
        self.port = port

    def connect(self, receive_buffer_bytes: int | None = None) -> socket.socket:
        """A client's socket, not patient."""
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def ask(self, request: bytes) -> bytes:
        """Everything that the server says to these bytes until it closes the connection."""
        with self.connect() as sock:
            sock.sendall(request)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Until the other side closes."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_response(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response with a length, and nothing of the next."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    status, headers = parse_head(head)
    body = b""
    while len(body) < int(headers["content-length"]):
        part = sock.recv(int(headers["content-length"]) - len(body))
        assert part, "closed in the body"
        body += part
    return status, headers, body


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode().rstrip("\r\n").split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines)


def responses_of(received: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """All responses in what was received, each with a length."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, headers = parse_head(head)
        length = int(headers["content-length"])
        found.append((status, headers, received[:length]))
        received = received[length:]
    return found


def until(condition: Any, what: str, seconds: float = 10.0) -> None:
    """Wait for a condition of another thread or process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def listening(**settings: Any) -> Iterator[Listening]:
    """Serve in a thread; ends with an orderly shutdown."""
    chosen = GatewaySettings(**({"unready_s": 0.0, "drain_s": 2.0, "settle_s": 1.0} | settings))
    app, lifecycle = TinyApp(), Lifecycle()
    (sock,) = listening_sockets("127.0.0.1", 0, 1, chosen.write_stall_s)
    port = port_of(sock)
    metrics = Metrics()
    server = make_server(app, chosen, lifecycle, metrics)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        until(lambda: server.started, "start")
        yield Listening(app, server, metrics, port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
