"""Runs one gateway: binds its ports, serves in this process or under a supervisor, shuts down in order. It
knows the application only by the name of its factory. Every process has a metrics page of its own.

Shutdown, on SIGTERM or SIGINT: (1) the process is no longer ready; for `unready_s` it still takes requests
and closes each connection with the answer, so that load balancers turn away; (2) it accepts no connection,
and requests run on for `drain_s`; (3) the application ends the rest with an error and settles, for
`settle_s`; (4) what is left is cancelled, and the application closes; if settles can be kept nowhere it waits
for up to `unsaved_wait_s`; (5) exit 0, or SETTLES_LOST. A second signal exits at once: leases and the reaper
settle what was open.
"""

import asyncio
import contextlib
import importlib
import logging
import math
import os
import resource
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from billing.wire.metrics_page import MetricsPage
from billing.wire.redis_address import RedisAddressError, parse_redis_url
from billing.wire.redis_server import WrongRedis, require_usable
from gateway.edge.connection import listening_protocol
from gateway.edge.cors import CrossOrigin, parse_origins
from gateway.edge.sweep import ListenLimits
from gateway.lifecycle import Lifecycle
from gateway.metrics import Metrics
from gateway.process.logs import configure_logs
from gateway.process.sockets import BACKLOG, listening_sockets, port_of, require_free
from gateway.process.supervise import Supervisor
from gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

APP_FACTORY = "gateway.app:build_app"
# Exit status of a process that ended before Redis or its journal took every settle; its log says how many
# were lost.
SETTLES_LOST = 4


class GatewayServer(uvicorn.Server):
    """uvicorn's server with our order of shutdown. It does not end by the signal itself."""

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
        if self.on_ready is not None:
            self.on_ready()
        log.info("serving")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal shuts down in order, the second at once."""
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


def serve(
    settings: GatewaySettings,
    factory: str,
    sock: socket.socket,
    *,
    metrics_port: int,
    deaths: int = 0,
    on_ready: Callable[[GatewayServer], None] | None = None,
) -> int:
    """Serve on a socket in this process until told to stop; returns the exit status. `deaths`: how many
    processes have died that had its place.
    """
    # A crash must not write prompts to the disk: one byte stops files of cores, and programs that take cores
    # from the kernel.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    lifecycle, metrics = Lifecycle(), Metrics()
    try:
        page = MetricsPage(
            "gateway",
            metrics.registry,
            host=settings.metrics_host,
            ports=[metrics_port],
            redis_address=parse_redis_url(settings.redis_url),
        )
    except OSError as exc:
        _tell_taken(metrics_port, exc)
        return 1
    with page:
        log.info("listening", extra={"port": port_of(sock), "metrics_port": page.port})
        server = make_server(_build(factory, settings, lifecycle, metrics), settings, lifecycle, metrics)

        def ready() -> None:
            metrics.serves(deaths)
            if on_ready is not None:
                on_ready(server)

        server.on_ready = ready
        server.run(sockets=[sock])
    return SETTLES_LOST if lifecycle.settles_lost else 0


def _build(factory: str, settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> Any:
    """The application, from a `module:function` that takes the settings, the process's lifecycle and its
    metrics.
    """
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(settings, lifecycle=lifecycle, metrics=metrics)


def _tell_taken(metrics_port: int, exc: OSError) -> None:
    log.error(
        "cannot listen for metrics",
        extra={"setting": "TAAS_GATEWAY_METRICS_PORT", "port": metrics_port, "reason": exc.strerror},
    )


def run(settings: GatewaySettings, factory: str = APP_FACTORY) -> int:
    """Serve until told to stop; returns the exit status."""
    configure_logs(settings.log_level)
    try:
        require_usable(settings.redis_url)
    except (RedisAddressError, WrongRedis) as exc:
        log.error("cannot start", extra={"setting": "TAAS_REDIS_URL", "reason": str(exc)})
        return 1
    with contextlib.ExitStack() as stack:
        try:
            sockets = listening_sockets(
                settings.host, settings.port, settings.processes, settings.write_stall_s
            )
        except OSError as exc:
            where = {"setting": "TAAS_GATEWAY_PORT", "host": settings.host, "port": settings.port}
            log.error("cannot listen", extra={**where, "reason": exc.strerror})
            return 1
        for sock in sockets:
            stack.callback(sock.close)
        if settings.processes == 1:
            return serve(settings, factory, sockets[0], metrics_port=settings.metrics_port)
        for port in settings.metrics_ports:
            try:
                require_free(settings.metrics_host, port)
            except OSError as exc:
                _tell_taken(port, exc)
                return 1
        return Supervisor(settings, factory, sockets).run()
