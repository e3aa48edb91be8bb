"""Reads a whole request body, within the memory that its tenant and the process have for arriving bodies.

It knows neither the content nor what the tenant may ask for.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.edge.client import ClientConnection
from gateway.errors import BodyTooLarge, ClientDisconnected, UnsupportedContentEncoding
from gateway.waiting.receiving import Receiving, Share

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# The first share of a body without a declared length; it then doubles. Most bodies are small.
UNDECLARED_FIRST_BYTES = 64 * 1024


async def read_body(
    scope: MutableMapping[str, Any], receive: Receive, max_bytes: int, receiving: Receiving, tenant: str
) -> bytes:
    """Read the body, at most `max_bytes` long. A body that arrives in one piece is not copied.

    Raises UnsupportedContentEncoding (nothing is ever decompressed); BodyTooLarge as soon as the declared or
    actual length exceeds the cap (the rest is not read); QuotaExceeded or ReceivingFull if there is no memory
    for it; ClientDisconnected if the client disconnected or was cut off before the end (the listener has
    answered by then).
    """
    declared_bytes = _check_headers(scope, max_bytes)
    connection: ClientConnection = scope["extensions"]["taas.connection"]
    if connection.body_arrived():
        return _arrived(connection, max_bytes)
    with receiving.share(tenant) as share:
        await _hold(share, min(max_bytes, declared_bytes or UNDECLARED_FIRST_BYTES), connection)
        pieces: list[bytes] = []
        size_bytes = 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnected
            piece: bytes = message.get("body", b"")
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise BodyTooLarge(max_bytes)
            pieces.append(piece)
            more = message.get("more_body", False)
            if more and declared_bytes is None and size_bytes >= share.bytes:
                await _hold(share, min(max_bytes, 2 * size_bytes), connection)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _arrived(connection: ClientConnection, max_bytes: int) -> bytes:
    """Return a body that has already arrived in one piece, as ordinary ones do. It takes nothing of the
    budget for arriving bodies.
    """
    if connection.is_disconnected():
        raise ClientDisconnected
    body = connection.take_body()
    if len(body) > max_bytes:
        raise BodyTooLarge(max_bytes)
    return body


async def _hold(share: Share, size_bytes: int, connection: ClientConnection) -> None:
    if not share.grow(size_bytes):
        connection.pause_body()
        await share.wait_to_grow(size_bytes)


def _check_headers(scope: MutableMapping[str, Any], max_bytes: int) -> int | None:
    """The declared length, if there is one."""
    declared_bytes = None
    for name, value in scope["headers"]:
        if name == b"content-length":  # the listener has refused anything but digits
            declared_bytes = int(value)
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedContentEncoding
    if declared_bytes is not None and declared_bytes > max_bytes:
        raise BodyTooLarge(max_bytes)
    return declared_bytes
