"""Reading a body: bounded, uncopied where possible, never inflated."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.body import read_body
from gateway.errors import BodyTooLarge, CallerLeft, UnsupportedContentEncoding

Receive = Callable[[], Awaitable[dict[str, Any]]]


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


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


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
    with pytest.raises(CallerLeft):
        await read_body(scope(), receive, 1000)
