"""Listens, sweeps idle connections, and stops in order: no new connections, streams to their end or to the
deadline.
"""

import asyncio
import contextlib
import signal
import ssl
import time

from loadtest.engine.connection import EngineConnection
from loadtest.engine.engine import Engine
from loadtest.engine.options import EngineOptions


async def serve(*engines: tuple[Engine, EngineOptions]) -> None:
    """Run them in this process until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        for engine, options in engines:
            group.create_task(_serve(engine, options, stop))


async def _serve(engine: Engine, options: EngineOptions, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    connections: set[EngineConnection] = set()
    listener = await loop.create_server(
        lambda: EngineConnection(engine.handle, connections),
        options.host,
        options.port,
        backlog=4096,
        reuse_address=True,
        ssl=_tls(options),
    )
    steps = loop.create_task(engine.scheduler.run())
    sweep = loop.create_task(_sweep(connections, options.keep_alive_s))
    await stop.wait()
    listener.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(options.shutdown_timeout_s):
            await _finish(connections)
    for task in (steps, sweep):
        task.cancel()


def _tls(options: EngineOptions) -> ssl.SSLContext | None:
    if options.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_certificate, options.tls_key)
    return context


async def _sweep(connections: set[EngineConnection], keep_alive_s: float) -> None:
    """Close what has been idle for too long, as uvicorn does."""
    while True:
        await asyncio.sleep(min(1.0, keep_alive_s))
        oldest = time.monotonic() - keep_alive_s
        for connection in list(connections):
            if connection.idle and connection.idle_since < oldest:
                connection.close()


async def _finish(connections: set[EngineConnection]) -> None:
    while any(not connection.idle for connection in connections):  # noqa: ASYNC110 - once in a process's life
        await asyncio.sleep(0.01)
