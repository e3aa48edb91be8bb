"""A tiny application with the real one's signature, for processes that the tests start and kill."""

import asyncio
import os
import sys
from typing import Any

from gateway.lifecycle import Lifecycle
from gateway.metrics import Metrics
from gateway.process.serve import run
from gateway.settings import GatewaySettings
from tests.gateway.listening import answer


def build_app(settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> Any:
    """Answers with its process, counts, streams until it is told to end."""
    streams: list[Any] = []
    metrics.count_open(lambda: len(streams))

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        match scope["raw_path"]:
            case b"/count":
                metrics.refused("tiny")
                await answer(send, 200, {"process": os.getpid()})
            case b"/lose":
                lifecycle.settles_lost += 1
                await answer(send, 200, {})
            case b"/stream":
                streams.append(scope)
                await _stream(lifecycle, send, scope["query_string"] == b"forever")
                streams.remove(scope)
            case b"/readyz":
                await answer(send, 503 if lifecycle.draining else 200, {})
            case _:
                await answer(
                    send, 200, {"process": os.getpid(), "key": settings.service_key.get_secret_value()}
                )

    return app


def build_broken_app(settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> Any:
    """Cannot start."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    return app


async def _lifespan(receive: Any, send: Any) -> None:
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _stream(lifecycle: Lifecycle, send: Any, forever: bool) -> None:
    """A piece every 20 ms: 50 pieces, or until the drain's deadline."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    pieces = 0
    while forever or pieces < 50:
        if lifecycle.deadline_passed.is_set():
            await send({"type": "http.response.body", "body": b'data: {"error": {"code": "stopped"}}\n\n'})
            return
        pieces += 1
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


if __name__ == "__main__":
    sys.exit(run(GatewaySettings(), f"tests.gateway.tiny_gateway:{sys.argv[1]}"))
