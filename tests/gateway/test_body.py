"""Reading a body: bounded, uncopied where possible, never inflated."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway import body
from gateway.errors import BodyTooLarge, ClientDisconnected, QuotaExceeded, UnsupportedContentEncoding
from gateway.waiting.receiving import ReceivePolicy, Receiving

Receive = Callable[[], Awaitable[dict[str, Any]]]
ROOM = Receiving(ReceivePolicy(100_000, 50_000, 0.0))


async def read_body(scope: dict[str, Any], receive: Receive, max_bytes: int, room: Receiving = ROOM) -> bytes:
    """Read it as a tenant; however that ends, nothing is held afterwards."""
    try:
        return await body.read_body(scope, receive, max_bytes, room, "ten_a")
    finally:
        assert (ROOM.held_bytes, ROOM.held_by("ten_a")) == (0, 0)


def receiving(*pieces: bytes, then: dict[str, Any] | None = None) -> tuple[Receive, list[int]]:
    """A receive that gives these pieces, and a list of how many were taken."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if then is None:
        messages[-1]["more_body"] = False
    else:
        messages.append(then)
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        taken.append(1)
        return messages[len(taken) - 1]

    return receive, taken


class Connection:
    """What the listener tells of a connection whose body is here, or is not."""

    def __init__(self, arrived: bytes | None = None) -> None:
        self.arrived = arrived
        self.gone = False
        self.paused = 0

    def body_arrived(self) -> bool:
        return self.arrived is not None

    def is_disconnected(self) -> bool:
        return self.gone

    def take_body(self) -> bytes:
        assert self.arrived is not None
        return self.arrived

    def pause_body(self) -> None:
        self.paused += 1


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return over(Connection(), *headers)


def over(connection: Connection, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), "extensions": {"taas.connection": connection}}


async def test_body_in_one_piece_is_that_very_piece() -> None:
    piece = b"x" * 1000
    receive, _ = receiving(piece)
    assert await read_body(scope((b"content-length", b"1000")), receive, 1000) is piece


async def test_body_in_pieces_is_joined() -> None:
    receive, _ = receiving(b"ab", b"", b"cd")
    assert await read_body(scope(), receive, 4) == b"abcd"


async def test_fault_03_declared_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    receive, taken = receiving(b"x")
    with pytest.raises(BodyTooLarge):
        await read_body(scope((b"content-length", b"1001")), receive, 1000)
    assert taken == []


async def test_fault_03_growing_body_is_refused_at_the_piece_that_passes_the_limit() -> None:
    receive, taken = receiving(*[b"x" * 100] * 1000)
    with pytest.raises(BodyTooLarge):
        await read_body(scope(), receive, 1000)
    assert len(taken) == 11


async def test_fault_03_one_piece_over_the_limit_is_refused() -> None:
    receive, _ = receiving(b"x" * 1001)
    with pytest.raises(BodyTooLarge):
        await read_body(scope(), receive, 1000)


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"identity, gzip"])
async def test_fault_04_encoded_body_is_refused_before_anything_is_read(encoding: bytes) -> None:
    receive, taken = receiving(b"x")
    with pytest.raises(UnsupportedContentEncoding):
        await read_body(scope((b"content-encoding", encoding)), receive, 1000)
    assert taken == []


@pytest.mark.parametrize("encoding", [b"identity", b"Identity ", b""])
async def test_identity_is_no_encoding(encoding: bytes) -> None:
    receive, _ = receiving(b"x")
    assert await read_body(scope((b"content-encoding", encoding)), receive, 1000) == b"x"


@pytest.mark.parametrize("pieces", [(), (b"ab",)])
async def test_fault_05_body_whose_sender_left_is_never_taken_for_whole(pieces: tuple[bytes, ...]) -> None:
    receive, _ = receiving(*pieces, then={"type": "http.disconnect"})
    with pytest.raises(ClientDisconnected):
        await read_body(scope(), receive, 1000)


async def test_a_declared_body_is_held_whole_before_it_is_read() -> None:
    held: list[int] = []
    receive, _ = receiving(b"a" * 600, b"b" * 400)

    async def watching() -> dict[str, Any]:
        held.append(ROOM.held_by("ten_a"))
        return await receive()

    await read_body(over(Connection(), (b"content-length", b"1000")), watching, 2000)
    assert held == [1000, 1000]


async def test_a_body_of_unknown_length_holds_more_as_it_grows_and_never_more_than_its_cap() -> None:
    held: list[int] = []
    room = Receiving(ReceivePolicy(1_000_000, 1_000_000, 0.0))
    receive, _ = receiving(*[b"a" * 40_000] * 7)

    async def watching() -> dict[str, Any]:
        held.append(room.held_bytes)
        return await receive()

    assert len(await read_body(over(Connection()), watching, 300_000, room)) == 280_000
    assert held == [65_536, 65_536, 160_000, 160_000, 300_000, 300_000, 300_000]
    assert room.held_bytes == 0


async def test_a_body_that_is_here_already_takes_nothing_from_those_that_arrive() -> None:
    room = Receiving(ReceivePolicy(10, 10, 0.0))
    receive, taken = receiving(b"")
    assert len(await read_body(over(Connection(b"a" * 1000)), receive, 2000, room)) == 1000
    assert taken == []


async def test_a_body_that_is_here_already_has_the_same_cap_and_the_same_sender() -> None:
    receive, _ = receiving(b"")
    connection = Connection(b"a" * 1001)
    with pytest.raises(BodyTooLarge):
        await read_body(over(connection), receive, 1000)
    connection.gone = True
    with pytest.raises(ClientDisconnected):
        await read_body(over(connection), receive, 2000)


async def test_without_room_nothing_is_read_and_the_connection_is_paused() -> None:
    room = Receiving(ReceivePolicy(1000, 1000, 0.0))
    connection = Connection()
    receive, taken = receiving(b"a")
    with room.share("ten_a") as other:
        assert other.grow(1)
        with pytest.raises(QuotaExceeded):
            await read_body(over(connection, (b"content-length", b"1000")), receive, 2000, room)
    assert (taken, connection.paused, room.held_bytes) == ([], 1, 0)


async def test_a_growing_body_without_room_is_given_up_and_gives_back_what_it_held() -> None:
    room = Receiving(ReceivePolicy(100_000, 100_000, 0.0))
    receive, taken = receiving(*[b"a" * 40_000] * 9)
    with pytest.raises(QuotaExceeded):
        await read_body(over(Connection()), receive, 300_000, room)
    assert (len(taken), room.held_bytes) == (2, 0)
