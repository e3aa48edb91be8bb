"""Callers that take their time, leave, or do not read: short limits, real sockets."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.gateway.listening import (
    Listening,
    listening,
    parse_head,
    read_all,
    read_response,
    responses_of,
    until,
)

GET = b"GET /one HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening(head_deadline_s=0.3, body_deadline_s=0.4, keep_alive_s=0.6, write_stall_s=0.5) as running:
        yield running


@pytest.fixture(autouse=True)
def _forget(server: Listening) -> None:
    for made in (server.app.ran, server.app.left, server.app.stalled):
        made.clear()


class Dripping:
    """Sends a byte every now and then until told to stop or cut off."""

    def __init__(self, sock: socket.socket, pieces: bytes) -> None:
        self._sock = sock
        self._pieces = pieces
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def _drip(self) -> None:
        for index in range(len(self._pieces)):
            if self._ended.wait(0.02):
                return
            try:
                self._sock.send(self._pieces[index : index + 1])
            except OSError:
                return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def check_timeout(received: bytes) -> None:
    status, headers, body = responses_of(received)[-1]
    assert status == 408
    assert json.loads(body)["error"]["code"] == "request_timeout"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]


def test_fault_05_slow_head_gets_408_at_its_deadline(server: Listening) -> None:
    with server.connect() as sock:
        sock.send(GET)
        started = time.monotonic()
        # More than the client waits for, two minutes of it.
        with Dripping(sock, b"A: b\r\n" * 1000):
            check_timeout(read_all(sock))
        assert time.monotonic() - started > 0.2
    assert server.app.ran == []


def test_fault_05_slow_head_after_a_good_request_gets_408(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(GET + b"\r\n" + GET)
        assert read_response(sock)[0] == 200
        check_timeout(read_all(sock))
    assert server.app.ran == ["/one"]


def test_fault_05_connection_that_never_says_anything_is_closed(server: Listening) -> None:
    with server.connect() as sock:
        assert read_all(sock) == b""


def test_fault_05_empty_lines_do_not_keep_a_connection(server: Listening) -> None:
    with server.connect() as sock, Dripping(sock, b"\r\n" * 1000):
        assert read_all(sock) == b""


def test_fault_05_slow_body_gets_408_and_the_request_is_told(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        with Dripping(sock, b"x" * 1000):
            check_timeout(read_all(sock))
    until(lambda: server.app.left == ["/body"], "the request to be told")


def test_fault_05_slow_chunked_body_gets_408(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with Dripping(sock, b"1\r\na\r\n" * 1000):
            check_timeout(read_all(sock))


def test_fault_05_slow_body_of_a_queued_request_does_not_harm_the_one_before(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /hold?before HTTP/1.1\r\nHost: x\r\n\r\n" + POST + b"Content-Length: 9\r\n\r\nabc")
        until(lambda: "before" in server.app.held, "the first to run")
        time.sleep(1)  # more than the body's deadline
        server.app.release("before")
        received = read_all(sock)
    assert [status for status, _, _ in responses_of(received)] == [200, 408]
    assert server.app.ran == ["/hold"]


def test_idle_connection_is_closed_in_silence(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(GET + b"\r\n")
        assert read_response(sock)[0] == 200
        started = time.monotonic()
        assert read_all(sock) == b""
        assert time.monotonic() - started > 0.4


def test_a_request_that_runs_long_is_not_idle(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /hold?long HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: "long" in server.app.held, "it to run")
        time.sleep(1.2)  # more than every limit
        server.app.release("long")
        assert read_response(sock)[0] == 200


def test_fault_05_caller_that_never_reads_its_stream_is_cut_off_as_stalled(server: Listening) -> None:
    with server.connect(receive_buffer_bytes=4096) as sock:
        sock.sendall(b"GET /stream?pieces=100000&size=4096 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: server.app.left == ["/stream"], "the stream to be told")
    assert server.app.stalled == [True]


def test_fault_05_caller_that_never_reads_a_large_answer_is_cut_off(server: Listening) -> None:
    with server.connect(receive_buffer_bytes=4096) as sock:
        sock.sendall(b"GET /stream?pieces=1&size=20000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        until(lambda: server.app.left == ["/stream"], "the connection to be given up")
    assert server.app.stalled == [True]


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_fault_05_answer_that_is_complete_but_never_read_does_not_hold_its_connection(
    server: Listening, connection: bytes
) -> None:
    connections = server.server.server_state.connections
    until(lambda: not connections, "earlier connections to be gone")
    with server.connect(receive_buffer_bytes=4096) as sock:
        sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: " + connection + b"\r\n\r\n")
        until(lambda: server.app.ran == ["/large"], "it to run")
        until(lambda: not connections, "the connection to be given up", seconds=4)


def test_fault_05_caller_that_reads_slowly_gets_everything(server: Listening) -> None:
    size = 3_000_000
    with server.connect(receive_buffer_bytes=65536) as sock:
        sock.sendall(b"GET /stream?pieces=1&size=%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % size)
        received = 0
        while part := sock.recv(65536):
            received += len(part)
            time.sleep(0.03)  # about 1.5 s in all, three times the write-stall limit
        assert received > size
    assert server.app.left == []


def test_fault_42_caller_that_leaves_is_noticed_at_once(server: Listening) -> None:
    sock = server.connect()
    sock.sendall(b"GET /hold?left HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: "left" in server.app.held, "it to run")
    sock.close()
    until(lambda: server.app.left == ["/hold"], "the request to be told", seconds=1)
    assert server.app.stalled == [False]
    server.app.release("left")


def test_fault_42_caller_that_leaves_with_requests_queued_is_noticed_by_the_running_one(
    server: Listening,
) -> None:
    sock = server.connect()
    sock.sendall(b"GET /hold?queue HTTP/1.1\r\nHost: x\r\n\r\n" + (GET + b"\r\n") * 3)
    until(lambda: "queue" in server.app.held, "it to run")
    sock.close()
    until(lambda: server.app.left == ["/hold"], "the request to be told", seconds=1)
    server.app.release("queue")
    assert server.app.ran == ["/hold"]


def test_fault_03_length_over_the_limit_gets_413_before_the_body_is_sent(server: Listening) -> None:
    server.app.received_bytes = 0
    with server.connect() as sock:
        sock.sendall(POST + b"Content-Length: 100000000\r\n\r\n")
        status, headers, body = read_response(sock)
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["error"]["code"] == "body_too_large"
    assert server.app.received_bytes == 0


def test_fault_03_chunked_body_gets_413_as_soon_as_it_has_grown_past_the_limit(server: Listening) -> None:
    server.app.received_bytes = 0
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with server.connect() as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 200:  # 13 MB against a limit of 256 KiB
                sock.sendall(chunk)
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        status, headers = parse_head(sock.recv(65536).partition(b"\r\n\r\n")[0])
    assert (status, headers["connection"]) == (413, "close")
    assert server.app.received_bytes < 1024 * 1024


def test_fault_03_sender_of_a_huge_body_reads_its_413_instead_of_a_reset(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(POST + b"Content-Length: 100000000\r\n\r\n" + b"x" * 300_000)
        sock.sendall(b"x" * 300_000)
        received = read_all(sock)
    assert received.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"identity, gzip"])
def test_fault_04_compressed_body_gets_415_unread(server: Listening, encoding: bytes) -> None:
    server.app.received_bytes = 0
    with server.connect() as sock:
        sock.sendall(POST + b"Content-Encoding: " + encoding + b"\r\nContent-Length: 100000\r\n\r\n")
        status, headers, body = read_response(sock)
    assert (status, headers["connection"]) == (415, "close")
    assert json.loads(body)["error"]["code"] == "unsupported_content_encoding"
    assert server.app.received_bytes == 0
