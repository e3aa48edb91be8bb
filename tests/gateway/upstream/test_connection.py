"""HTTP towards an engine, over real sockets with scripted servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.upstream.connection import UpstreamConnection, UpstreamError, UpstreamFailure, UpstreamPool

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


@asynccontextmanager
async def server(script: Script) -> AsyncIterator[UpstreamPool]:
    """A pool to a server that runs `script` on each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    pool = UpstreamPool(f"http://127.0.0.1:{port}", {"authorization": "Bearer ek"}, 1.0)
    try:
        yield pool
    finally:
        pool.close()
        listener.close()
        await listener.wait_closed()


async def fetch(pool: UpstreamPool) -> tuple[int, bytes]:
    connection, _ = await pool.acquire()
    connection.send(pool.request_bytes(b"/v1/x", b"x-request-id: req_1\r\n", b'{"a":1}'))
    status = await connection.head()
    body = await read_all(connection)
    pool.release(connection)
    return status, body


async def read_all(connection: UpstreamConnection) -> bytes:
    pieces: list[bytes] = []
    await connection.read(lambda piece: pieces.append(piece) is not None)
    return b"".join(pieces)


async def test_request_carries_only_our_headers_and_the_connection_is_kept() -> None:
    seen: list[tuple[bytes, bytes]] = []
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            seen.append(await read_request(reader))
            writer.write(OK)

    async with server(script) as pool:
        assert await fetch(pool) == (200, b"{}")
        assert await fetch(pool) == (200, b"{}")
    assert connections == 1
    head, body = seen[0]
    names = [line.split(b":")[0] for line in head.split(b"\r\n")[1:] if line]
    assert names == [b"host", b"authorization", b"content-type", b"content-length", b"x-request-id"]
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert body == b'{"a":1}'


async def test_a_header_of_our_own_is_sent_beside_the_others() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async with server(script) as pool:
        connection, _ = await pool.acquire()
        connection.send(
            pool.request_bytes(b"/v1/x", b"x-request-id: req_1\r\nx-vllm-priority: 20\r\n", b"{}")
        )
        assert await connection.head() == 200
    head, body = seen[0]
    assert b"\r\nx-request-id: req_1\r\nx-vllm-priority: 20\r\n" in head
    assert body == b"{}"


async def test_pieces_are_handed_over_as_they_arrive() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await go_on.wait()
        writer.write(b"2\r\nde\r\n0\r\n\r\n")

    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        go_on.set()
        return False

    async with server(script) as pool:
        connection = await asked(pool)
        await connection.read(take)
        assert pieces == [b"abc", b"de"]
        assert connection.reusable


async def asked(pool: UpstreamPool) -> UpstreamConnection:
    """A connection on which a request has been sent and its head read."""
    connection, _ = await pool.acquire()
    connection.send(pool.request_bytes(b"/", b"", b""))
    await connection.head()
    return connection


async def test_whoever_has_enough_is_handed_no_more_and_can_read_on_later() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await reader.read(1)
        writer.write(b"2\r\nde\r\n0\r\n\r\n")

    pieces: list[bytes] = []
    async with server(script) as pool:
        connection = await asked(pool)
        await connection.read(lambda piece: pieces.append(piece) is None)
        assert pieces == [b"abc"]
        assert not connection.reusable
        assert connection._transport is not None
        connection._transport.write(b"x")
        assert await read_all(connection) == b"de"
        assert connection.reusable


async def test_what_the_taker_raises_is_raised_where_it_reads() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)

    def take(_: bytes) -> bool:
        raise LookupError

    async with server(script) as pool:
        connection = await asked(pool)
        with pytest.raises(LookupError):
            await connection.read(take)


async def test_a_paused_engine_is_not_read_until_it_is_resumed() -> None:
    pieces: list[bytes] = []
    paused, asked_again = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await paused.wait()
        writer.write(b"2\r\nde\r\n0\r\n\r\n")
        await writer.drain()
        await read_request(reader)
        asked_again.set()

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        if len(pieces) == 1:
            connection.pause()
            paused.set()
        return False

    async with server(script) as pool:
        connection = await asked(pool)
        reading = asyncio.create_task(connection.read(take))
        await paused.wait()
        assert connection._transport is not None
        connection._transport.write(pool.request_bytes(b"/", b"", b""))
        await asked_again.wait()  # the rest has been written, and was not read
        assert pieces == [b"abc"]
        connection.resume()
        await reading
        assert pieces == [b"abc", b"de"]


async def failure_of(script: Script) -> UpstreamFailure:
    async with server(script) as pool:
        with pytest.raises(UpstreamError) as caught:
            await fetch(pool)
        return caught.value.kind


async def test_fault_26_closing_before_the_head_is_told_apart_from_closing_in_the_body() -> None:
    async def before(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")

    assert await failure_of(before) is UpstreamFailure.CLOSED_BEFORE_HEAD
    assert await failure_of(inside) is UpstreamFailure.CLOSED_IN_BODY


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000,
    ],
)
async def test_fault_29_what_is_not_http_is_a_protocol_failure(answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()
        await reader.read()

    assert await failure_of(script) is UpstreamFailure.PROTOCOL


async def test_bytes_that_nobody_asked_for_are_never_the_next_answer() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + OK.replace(b"{}", b"[]"))
        await read_request(reader)
        writer.write(OK)

    async with server(script) as pool:
        status, body = await fetch(pool)
        assert (status, body) == (200, b"{}")
        connection, reused = await pool.acquire()
        assert not reused
        connection.close()


async def test_fault_25_refused_and_unanswered_connects_are_told_apart() -> None:
    listener = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    with pytest.raises(UpstreamError) as caught:
        await UpstreamPool(f"http://127.0.0.1:{port}", {}, 1.0).connect()
    assert caught.value.kind is UpstreamFailure.REFUSED


async def test_an_engine_faster_than_its_reader_is_paused() -> None:
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    async with server(script) as pool:
        connection, _ = await pool.acquire()
        connection.send(pool.request_bytes(b"/", b"", b""))
        await connection.head()
        last = -1
        while last != sent:  # until the sockets' buffers are full
            last = sent
            await asyncio.sleep(0.05)
        assert sent < 200
        assert len(await read_all(connection)) == 1000 * 65536
