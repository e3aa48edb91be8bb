"""A relay between the gateway and the engine, which breaks streams off when it is told to."""

import contextlib
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from enum import Enum
from urllib.parse import urlsplit

import psutil

from billing.wire import redis_keys
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import INSTANCE, Stack

# A whole event in a chunk of its own, as the engine sends each.
_EVENT_ENDS = b"\n\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
# Longer than any test with a relay takes.
_LEASE_MS = 300_000


class Break(Enum):
    """How a stream is broken off."""

    CLOSED = "the connection is closed in the middle of an event"
    RESET = "the connection is reset in the middle of an event"
    ENDED = "the answer ends as HTTP wants it, without its last events"


class EngineRelay(socketserver.ThreadingTCPServer):
    """Passes everything on, both ways. While `broken` is set, each stream that passes is broken off."""

    def __init__(self, engine_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        engine = urlsplit(engine_url)
        self.engine = (engine.hostname, engine.port)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.broken: Break | None = None
        self.has_tokenized = False
        self.sockets: set[socket.socket] = set()

    def server_close(self) -> None:
        """Also the connections that idle; when it returns, no thread is left."""
        for each in list(self.sockets):
            _shut(each)
        super().server_close()


class _Connection(socketserver.BaseRequestHandler):
    """One connection of the gateway, and one to the engine."""

    server: EngineRelay

    def handle(self) -> None:
        with socket.create_connection(self.server.engine) as engine:
            self.server.sockets.update((self.request, engine))
            asking = threading.Thread(target=self._ask, args=(engine,))
            asking.start()
            with contextlib.suppress(OSError):
                self._answer(engine)
            # Not the way to the gateway: that one ends as the stream was broken off.
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_RD)
            _shut(engine)
            asking.join()
            self.server.sockets.difference_update((self.request, engine))
            self.request.close()

    def _ask(self, engine: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := self.request.recv(65_536):
                self.server.has_tokenized |= piece.startswith(b"POST /tokenize ")
                engine.sendall(piece)
        _shut(engine)

    def _answer(self, engine: socket.socket) -> None:
        streams = False
        while piece := engine.recv(65_536):
            streams = streams or b"text/event-stream" in piece
            match self.server.broken if streams else None:
                case Break.ENDED if piece.endswith(_EVENT_ENDS):
                    self.request.sendall(piece + _LAST_CHUNK)
                    return
                case Break.CLOSED | Break.RESET as way:
                    self.request.sendall(piece[: len(piece) // 2])
                    if way is Break.RESET:
                        # Closed with this, it is reset.
                        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                case _:
                    self.request.sendall(piece)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def engine_behind_relay(stack: Stack) -> Iterator[EngineRelay]:
    """The engine's address is the relay's: its entry says so, which its worker would write anew each second
    if it were not paused.
    """
    worker = psutil.Process(stack.processes["worker"].pid)
    worker.suspend()
    entry = stack.instance()
    assert entry is not None
    with EngineRelay(entry["url"]) as relay:
        serving = threading.Thread(target=relay.serve_forever, args=(0.01,))
        serving.start()
        there = entry | {"url": relay.url, "lease_until_ms": entry["lease_until_ms"] + _LEASE_MS}
        try:
            stack.redis.hset(redis_keys.INSTANCES, INSTANCE, json.dumps(there))
            wait_until(lambda: _is_used(stack, relay), "gateway that asks through the relay")
            yield relay
        finally:
            worker.resume()
            relay.shutdown()
            serving.join()
    wait_until(lambda: (stack.instance() or {})["url"] == entry["url"], "the engine's own address")
    stack.await_served()


def _is_used(stack: Stack, relay: EngineRelay) -> bool:
    stack.await_served()
    return relay.has_tokenized
