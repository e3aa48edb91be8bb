"""Runs one gateway: binds its port, serves in this process or under a supervisor, shuts down in order. Knows
the application by its factory's name only.

Shutdown, on SIGTERM or SIGINT: (1) readiness goes, requests are taken on for `unready_s`, each answer closing
its connection, so that load balancers turn away; (2) no connection is accepted, what runs, runs on for
`drain_s`; (3) then the application ends the rest with an error and settles, for `settle_s`; (4) what is left
is cancelled, the application closes, and waits for up to `unsaved_wait_s` if settles can be kept nowhere; (5)
exit 0, or SETTLES_LOST. A second signal exits at once: leases and the reaper settle what was open.
"""

import asyncio
import contextlib
import importlib
import logging
import math
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from billing.wire.metrics_page import MetricsPage
from billing.wire.redis_address import RedisAddressError
from billing.wire.redis_server import WrongRedis, require_usable
from gateway.edge.connection import listening_protocol
from gateway.edge.cors import CrossOrigin, parse_origins
from gateway.edge.sweep import ListenLimits
from gateway.lifecycle import Lifecycle
from gateway.metrics.counts import Metrics
from gateway.process.logs import configure_logs
from gateway.process.sockets import BACKLOG, listening_sockets, port_of
from gateway.process.supervise import Supervisor
from gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

APP_FACTORY = "gateway.app:build_app"
# Exit status of a process that had to end before Redis or its journal took every settle; its log says how
# many were lost.
SETTLES_LOST = 4


class GatewayServer(uvicorn.Server):
    """uvicorn's server with our order of shutdown, after which it does not die of the signal."""

    def __init__(
        self, config: uvicorn.Config, lifecycle: Lifecycle, unready_s: float, drain_s: float
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._unready_s = unready_s
        self._drain_s = drain_s
        self.on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve once the application has started; a failure there ends the process with uvicorn's status
        3.
        """
        await super().startup(sockets)
        log.info("serving")
        if self.on_ready is not None:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: shut down. Second: now."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Steps 1 to 4."""
        self._lifecycle.begin_drain()
        if self._unready_s:
            log.info("not ready any more", extra={"taking_connections_for_s": self._unready_s})
            self.server_state.default_headers = [
                *self.server_state.default_headers,
                (b"connection", b"close"),
            ]
            await asyncio.sleep(self._unready_s)
        deadline = asyncio.get_running_loop().call_later(self._drain_s, self._lifecycle.end_streams)
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()


def make_server(app: Any, settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> GatewayServer:
    """The server of one process; give it its socket with `run(sockets=[…])`."""
    limits = ListenLimits(
        head_s=settings.head_deadline_s,
        body_s=settings.body_deadline_s,
        idle_s=settings.keep_alive_s,
        write_stall_s=settings.write_stall_s,
    )
    origins = parse_origins(settings.cors_origins)
    config = uvicorn.Config(
        app,
        http=listening_protocol(limits, metrics.refused, CrossOrigin(origins) if origins else None),
        ws="none",
        loop="uvloop",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.drain_s + settings.settle_s),
    )
    return GatewayServer(config, lifecycle, settings.unready_s, settings.drain_s)


def exit_status(lifecycle: Lifecycle) -> int:
    """What a process that has shut down ends with."""
    return SETTLES_LOST if lifecycle.settles_lost else 0


def build(factory: str, settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> Any:
    """The application, from a `module:function` that takes the settings, the process's lifecycle and its
    metrics.
    """
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(settings, lifecycle=lifecycle, metrics=metrics)


def run(settings: GatewaySettings, factory: str = APP_FACTORY) -> int:
    """Serve until told to stop; returns the exit status."""
    configure_logs(settings.log_level)
    try:
        address = require_usable(settings.redis_url)
    except (RedisAddressError, WrongRedis) as exc:
        log.error("cannot start", extra={"setting": "TAAS_REDIS_URL", "reason": str(exc)})
        return 1
    with contextlib.ExitStack() as stack:
        try:
            sockets = listening_sockets(
                settings.host, settings.port, settings.processes, settings.write_stall_s
            )
        except OSError as exc:
            log.error(
                "cannot listen", extra={"host": settings.host, "port": settings.port, "reason": exc.strerror}
            )
            return 1
        for sock in sockets:
            stack.callback(sock.close)
        registry = CollectorRegistry()
        try:
            page = stack.enter_context(
                MetricsPage(
                    "gateway",
                    registry,
                    host=settings.metrics_host,
                    ports=[settings.metrics_port],
                    redis_address=address,
                )
            )
        except OSError as exc:
            log.error(
                "cannot listen for metrics", extra={"port": settings.metrics_port, "reason": exc.strerror}
            )
            return 1
        port = port_of(sockets[0])
        where = {"port": port, "metrics_port": page.port, "processes": settings.processes}
        if settings.processes > 1:
            supervisor = Supervisor(settings, factory, sockets, registry)
            log.info("listening", extra=where)
            return supervisor.run()
        lifecycle, metrics = Lifecycle(), Metrics(registry)
        server = make_server(build(factory, settings, lifecycle, metrics), settings, lifecycle, metrics)
        log.info("listening", extra=where)
        server.run(sockets=sockets)
        return exit_status(lifecycle)
