"""One batch process: the routes, the runner and the sweep, on one event loop. It starts and stops them."""

import asyncio
import contextlib
import logging
import signal
import socket
from typing import Any, Final

import uvicorn
from sqlalchemy import Engine

from billing.batch.api.app import build_app
from billing.batch.metrics import BatchMetrics
from billing.batch.objects import Objects
from billing.batch.retention import sweep
from billing.batch.runner import Runner
from billing.batch.service import Service
from billing.batch.settings import BatchSettings
from billing.database import connect
from billing.wire.cancellation import end_tasks
from billing.wire.listening import naming
from billing.wire.metrics_page import MetricsPage
from billing.wire.redis_address import parse_redis_url

log = logging.getLogger(__name__)

_SWEEP_S: Final = 10.0


def run(settings: BatchSettings) -> None:
    """Work until SIGTERM or SIGINT. Raises OSError if a port is taken or the folder cannot be used,
    ValueError or DatabaseError for URLs that cannot be used.
    """
    metrics = BatchMetrics()
    objects = Objects(settings)
    engine = connect(settings.database_url, pool_pre_ping=True, pool_size=10, max_overflow=30)
    with naming("TAAS_BATCH_PORT", settings.port):
        listening = socket.create_server((settings.host, settings.port), backlog=128)
    with naming("TAAS_BATCH_METRICS_PORT", settings.metrics_port):
        page = MetricsPage(
            "batch", metrics.registry, host=settings.metrics_host, ports=[settings.metrics_port],
            redis_address=parse_redis_url(settings.redis_url),
        )  # fmt: skip
    with contextlib.closing(listening), page:
        try:
            asyncio.run(_work(settings, Service(engine, objects, settings, metrics), listening))
        finally:
            engine.dispose()


class _Server(uvicorn.Server):
    """Its signals are handled here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def _work(settings: BatchSettings, service: Service, listening: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = Runner(service.engine, service.objects, settings, service.metrics)
    server = _Server(
        uvicorn.Config(build_app(service), log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    serving = asyncio.create_task(server.serve([listening]))
    sweeping = asyncio.create_task(_sweep(service.engine, service.objects, service.metrics))
    log.info("batches work on %s:%d", *listening.getsockname()[:2])
    await runner.run(stop)
    server.should_exit = True
    await end_tasks(sweeping)
    await asyncio.gather(serving, return_exceptions=True)


async def _sweep(engine: Engine, objects: Objects, metrics: BatchMetrics) -> None:
    while True:
        try:
            await asyncio.to_thread(sweep, engine, objects)
        except Exception as exc:  # whatever store was away, the next round tries again
            metrics.failures.inc()
            log.warning("the sweep failed: %s", type(exc).__name__)
        await asyncio.sleep(_SWEEP_S)
