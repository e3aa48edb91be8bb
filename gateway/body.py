"""Reads a request's body, whole and bounded. Knows neither what is in it nor who sends it."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.errors import BodyTooLarge, CallerLeft, UnsupportedContentEncoding


async def read_body(
    scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[MutableMapping[str, Any]]], max_bytes: int
) -> bytes:
    """The body, at most `max_bytes` long; one that arrives in one piece is not copied.

    Raises UnsupportedContentEncoding (nothing is ever inflated), BodyTooLarge as soon as the length is declared or passed (the rest is not read),
    and CallerLeft when the sender left or was cut off before its end (the listener has answered by then): there is nothing to run.
    """
    _check_headers(scope, max_bytes)
    message = await receive()
    if message["type"] != "http.request":
        raise CallerLeft
    body: bytes = message.get("body", b"")
    if len(body) > max_bytes:
        raise BodyTooLarge(max_bytes)
    if not message.get("more_body", False):
        return body
    pieces = [body]
    size_bytes = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            raise CallerLeft
        piece: bytes = message.get("body", b"")
        size_bytes += len(piece)
        if size_bytes > max_bytes:
            raise BodyTooLarge(max_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def _check_headers(scope: MutableMapping[str, Any], max_bytes: int) -> None:
    too_large = False
    for name, value in scope["headers"]:
        if name == b"content-length":  # the listener has refused anything but digits
            too_large = int(value) > max_bytes
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedContentEncoding
    if too_large:
        raise BodyTooLarge(max_bytes)
