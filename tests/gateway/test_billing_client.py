"""Receipts outlive one of several billing processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from gateway.billing_client import BillingClient
from tests.fixtures.valkey import free_port


@asynccontextmanager
async def admin_api(status: int = 200, port: int = 0) -> AsyncIterator[tuple[str, Callable[[], list[str]]]]:
    """One that answers with this status; and what it was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(f"{head.split()[1]} {'Bearer sk' in head}")
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", lambda: list(asked)


async def test_one_that_does_not_answer_is_passed_over_and_who_answered_is_asked_first() -> None:
    async with admin_api() as (second, asked):
        first_port = free_port()
        client = BillingClient(f"http://127.0.0.1:{first_port}, {second}/", "sk")
        assert (await client.get("/admin/v1/requests/r", {"tenant": "t"})).status_code == 200
        assert asked() == ["/admin/v1/requests/r?tenant=t True"]
        async with admin_api(port=first_port) as (_, asked_first):
            assert (await client.get("/x", {})).status_code == 200
            assert asked_first() == []
        assert len(asked()) == 2


async def test_an_answer_is_an_answer_whatever_it_says() -> None:
    async with admin_api(404) as (first, _), admin_api() as (second, asked):
        client = BillingClient(f"{first},{second}", "sk")
        assert (await client.get("/x", {})).status_code == 404
        assert asked() == []


@pytest.mark.parametrize("count", [0, 2])
async def test_without_any_it_is_an_outage(count: int) -> None:
    client = BillingClient(",".join(f"http://127.0.0.1:{free_port()}" for _ in range(count)), "sk")
    with pytest.raises(httpx.TransportError):
        await client.get("/x", {})
