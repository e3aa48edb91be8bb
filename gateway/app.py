"""Builds the app of one process. It wires the stages once, under a FastAPI app whose inference routes are
plain ASGI.

The lifespan stops what it started in reverse order. A process does not end before every settle is in Redis or
in the journal.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, MutableMapping
from secrets import token_hex
from typing import Any
from zlib import crc32

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from billing.wire.cancellation import end_tasks
from billing.wire.ending import Ending
from billing.wire.routes import dialect_of_path
from gateway.api import InferenceApi, Receive, Scope, Send
from gateway.authenticate import authenticate
from gateway.batch_lines import LINE_ROUTES, serving_lines
from gateway.batches import batch_router
from gateway.billing_client import BillingClient
from gateway.budgets import Budgets
from gateway.catalogue.body_caps import BodyCaps
from gateway.catalogue.cache_salts import CacheSalts
from gateway.catalogue.feed import Catalogue
from gateway.checkpoint import Checkpointer, Deadlines
from gateway.clock import Clock
from gateway.edge.client import Client, id_headers, new_request_id
from gateway.edge.heartbeat import Heartbeats
from gateway.error_form import error_body, error_headers
from gateway.errors import GatewayError, MethodNotAllowed, RouteNotFound
from gateway.exchange import Exchange
from gateway.final_count import FinalCounts
from gateway.forward import Forwarder
from gateway.housekeeping import Housekeeping
from gateway.idempotency import Idempotency
from gateway.lifecycle import Lifecycle, keep_running
from gateway.listing import listing_router
from gateway.metrics import Metrics
from gateway.openapi import SECURITY_SCHEMES, inference_paths
from gateway.organization import organization_router
from gateway.quarantine import Quarantine
from gateway.readiness import Readiness
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisPipe
from gateway.redis.unsynced import WAIT_MS, UnsyncedSettles
from gateway.request import Dialect, RouteSpec
from gateway.reserve import Reserver, WaitPolicy
from gateway.resume import Resumer, preempt
from gateway.route import route
from gateway.routes import ROUTES_BY_PATH
from gateway.routing.router import Router
from gateway.routing.shared_news import SharedNews
from gateway.settings import GatewaySettings
from gateway.settle import Settler
from gateway.upstream.engines import Engines
from gateway.waiting.outage import OutageLeases
from gateway.waiting.pace import Pacer
from gateway.waiting.queue import WaitQueue
from gateway.waiting.receiving import ReceivePolicy, Receiving
from gateway.waiting.waking import WakingRoom

log = logging.getLogger(__name__)


def _receiving(settings: GatewaySettings) -> Receiving:
    policy = ReceivePolicy(settings.receive_bytes, settings.receive_bytes_per_tenant, settings.receive_wait_s)
    return Receiving(policy)


def _waiting(settings: GatewaySettings) -> WaitPolicy:
    return WaitPolicy(
        settings.wait_on_demand_s,
        settings.wait_flex_s,
        settings.wait_requests_per_tenant,
        settings.cancels_per_minute,
    )


class Stages:
    """The stages of one process and their background tasks."""

    def __init__(self, settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.gateway_id = f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._settings = settings
        self._metrics = metrics
        timeout_s = settings.redis_timeout_ms / 1000
        self._redis = RedisPipe(settings.redis_url, timeout_s=timeout_s, log_outages=True)
        self._feed = RedisPipe(settings.redis_url, timeout_s=timeout_s + 1.0)
        self._journal = Journal(settings.journal_path)
        self._markers = RedisPipe(settings.redis_url, timeout_s=timeout_s + WAIT_MS / 1000, scripts=False)
        self._unsynced = UnsyncedSettles(
            redis=self._redis, markers=self._markers, journal=self._journal, gateway_id=self.gateway_id
        )
        self.open_exchanges: dict[str, Exchange] = {}
        metrics.count_open(lambda: len(self.open_exchanges))
        outage = OutageLeases()
        self.clock = Clock()
        self._wait_queue = WaitQueue(
            gateway_id=self.gateway_id,
            redis_url=settings.redis_url,
            requests_max=settings.wait_requests,
            bytes_max=settings.wait_bytes,
            preempt=self._preempt,
            metrics=metrics,
        )
        self._waking = WakingRoom(self._redis, settings.wake_requests, settings.wake_wait_s)
        self._engines = _engines(settings, metrics)
        self.catalogue = Catalogue(self._redis, self._feed, self._stop)
        self._router, self._shared_news = self._routing(settings)
        self._cache_salt = CacheSalts(self.catalogue).of
        self._quarantine = Quarantine(
            self._redis, self._cache_salt, now_ms=lambda: self.clock.at_ms(time.monotonic())
        )
        self._pacer = Pacer(self._redis)
        self._budgets = Budgets(self._redis)
        self.billing = BillingClient(settings.admin_url, settings.service_key.get_secret_value())
        self._idempotency = Idempotency(self._redis, self.billing, self.gateway_id)
        self._settler = Settler(
            self._redis, self._journal, metrics, self.open_exchanges, self._pacer,
            unsynced=self._unsynced, budgets=self._budgets,
        )  # fmt: skip
        self._lifecycle = lifecycle
        self.readiness, self._housekeeping = self._observers(outage)
        reserver = Reserver(
            redis=self._redis,
            lease_ms=settings.lease_ms,
            outage=outage,
            journal=self._journal,
            queue=self._wait_queue,
            pacer=self._pacer,
            policy=_waiting(settings),
            opened=self._opened,
        )
        self._checkpointer = Checkpointer(
            redis=self._redis,
            open_exchanges=self.open_exchanges,
            deadlines=Deadlines(
                settings.request_deadline_s, settings.first_token_deadline_s, settings.write_stall_s
            ),
            lease_ms=settings.lease_ms,
            interval_s=settings.checkpoint_ms / 1000,
            progress=self._engines.progress,
            others_ready=self._others_ready,
            restore=reserver.restore,
        )
        self._heartbeats = Heartbeats(settings.heartbeat_s)
        self._final_counts = FinalCounts(self._engines, self.catalogue.instances, self._settler.settle)
        self.inference = self._inference(settings, reserver)
        lifecycle.on_deadline(self._stop_all)

    def _routing(self, settings: GatewaySettings) -> tuple[Router, SharedNews]:
        engines = self._engines
        router = Router(
            index_bytes=settings.prefix_index_bytes,
            open_here=engines.open_here,
            troubled=engines.breakers.troubled,
            avoided=lambda instance: engines.breakers.avoided(instance, time.monotonic()),
            first_turn=crc32(self.gateway_id.encode()),
        )
        news = SharedNews(
            router,
            gateway_id=self.gateway_id,
            redis_url=settings.redis_url,
            pipe=self._redis,
            instances=self.catalogue.instance_ids,
        )
        return router, news

    def _observers(self, outage: OutageLeases) -> tuple[Readiness, Housekeeping]:
        readiness = Readiness(
            lifecycle=self._lifecycle,
            catalogue=self.catalogue,
            redis=self._redis,
            journal=self._journal,
            outage=outage,
            unsynced=self._unsynced,
        )
        housekeeping = Housekeeping(
            gateway_id=self.gateway_id,
            redis=self._redis,
            journal=self._journal,
            unsynced=self._unsynced,
            outage=outage,
            catalogue=self.catalogue,
            metrics=self._metrics,
            clock=self.clock,
            quarantine=self._quarantine,
            engines=self._engines,
        )
        return readiness, housekeeping

    def _inference(self, settings: GatewaySettings, reserver: Reserver) -> InferenceApi:
        settle = self._final_counts.settle
        receiving = _receiving(settings)
        forwarder = Forwarder(
            engines=self._engines,
            serving=self.catalogue.serving,
            cache_salt=self._cache_salt,
            settle=settle,
            upstream_failed=self._metrics.upstream_error,
            quarantine=self._quarantine,
        )
        return InferenceApi(
            gateway_id=self.gateway_id,
            catalogue=self.catalogue,
            engines=self._engines,
            router=self._router,
            quarantine=self._quarantine,
            cache_salt=self._cache_salt,
            budgets=self._budgets,
            idempotency=self._idempotency,
            reserver=reserver,
            resumer=Resumer(reserver, self._checkpointer, settle),
            forwarder=forwarder,
            settle=settle,
            heartbeats=self._heartbeats,
            metrics=self._metrics,
            clock=self.clock,
            open_exchanges=self.open_exchanges,
            body_caps=BodyCaps(self.catalogue, settings.max_body_bytes, receiving.body_bytes_max),
            receiving=receiving,
            waking=self._waking,
            new_request_id=new_request_id,
            authenticate=authenticate,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the stages; at the end, wait until open requests have settled."""
        await self._journal.open()
        await self.catalogue.start(self._settings.start_wait_s)
        rounds = [
            keep_running("checkpoints", self._checkpointer.run),
            keep_running("housekeeping", self._housekeeping.run),
            keep_running("wait-queue", self._wait_queue.run),
            keep_running("heartbeats", self._heartbeats.run),
            keep_running("readiness", self.readiness.watch),
            keep_running("unsynced", self._unsynced.run),
            keep_running("shared-news", self._shared_news.run),
        ]
        # What was made until now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            self._stop_all()
            self._final_counts.give_up()
            while self.open_exchanges or self._wait_queue.exchanges or self._settler.settling:  # noqa: ASYNC110 - once, at the end of the process
                await asyncio.sleep(0.01)
            await self._save_settles()
            await self._idempotency.close()
            await end_tasks(*rounds)
            self._pacer.close()
            self._shared_news.close()
            await self._housekeeping.deregister()
            await self.catalogue.stop()
            self._engines.close()
            await self._feed.close()
            await self._unsynced.close()
            await self._markers.close()
            await self._redis.close()
            await self._journal.close()

    async def _save_settles(self) -> None:
        """Wait until the disk, or Redis through the housekeeping, has taken every settle. Counts those that
        nothing took in time.
        """
        wait_s, journal = self._settings.unsaved_wait_s, self._journal
        deadline = time.monotonic() + wait_s
        if journal.unsaved:
            log.error(
                "neither Redis nor the journal's disk takes these settles: waiting",
                extra={"settles": journal.unsaved, "wait_s": wait_s},
            )
        while journal.unsaved and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            journal.write_again()
        self._lifecycle.settles_lost = journal.unsaved
        if journal.unsaved:
            log.error("settles are lost", extra={"settles": journal.unsaved})

    def _opened(self, exchange: Exchange) -> None:
        """Note an admitted request: from now on it is checkpointed and must be settled."""
        self.open_exchanges[exchange.request_id] = exchange

    def _preempt(self, request_id: str) -> None:
        """The cell needs the slot of a flex request."""
        if (found := self.open_exchanges.get(request_id)) is not None:
            preempt(found)

    def _stop(self, subject: str) -> None:
        """The operator stops a request, or all requests of a tenant."""
        if subject.startswith("tenant:"):
            tenant = subject.removeprefix("tenant:")
            for exchange in [*self.open_exchanges.values(), *self._wait_queue.exchanges.values()]:
                if exchange.request.caller.tenant.tenant == tenant:
                    exchange.stop(Ending.TENANT_SUSPENDED)
            return
        found = self.open_exchanges.get(subject) or self._wait_queue.exchanges.get(subject)
        if found is not None:
            found.stop(Ending.OPERATOR_STOP)

    def _stop_all(self) -> None:
        """The drain's deadline has passed: stop every request."""
        for exchange in [*self.open_exchanges.values(), *self._wait_queue.exchanges.values()]:
            exchange.stop(Ending.GATEWAY_STOPPED)
        self._waking.stop()
        self._engines.end_abandoned()

    def _others_ready(self, exchange: Exchange) -> bool:
        instances = self.catalogue.serving(
            exchange.request.model.name, exchange.parsed.route.facts.offered_as
        )
        tried = {*exchange.tried, exchange.attempt.instance.instance}
        return route(instances, {}, self._engines.breakers, time.monotonic(), tried) is not None


def _engines(settings: GatewaySettings, metrics: Metrics) -> Engines:
    return Engines(
        settings.connect_timeout_s,
        settings.upstream_ca_file,
        metrics.set_breaker,
        read_on_s=settings.read_on_s,
    )


class GatewayApp(FastAPI):
    """FastAPI for everything but inference. Inference routes are matched by their raw path and go straight to
    their handler.
    """

    stages: Stages
    # None: lines of batches are not served.
    lines: InferenceApi | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            inference_route = ROUTES_BY_PATH.get(scope["raw_path"])
            if inference_route is None and _without_trailing_slash(scope):
                inference_route = ROUTES_BY_PATH.get(scope["raw_path"])
            if inference_route is not None:
                if scope["method"] == "POST":
                    await self.stages.inference(inference_route, scope, receive)
                else:
                    _refuse(inference_route, MethodNotAllowed("POST"), scope)
                return
            line_route = LINE_ROUTES.get(scope["raw_path"])
            if line_route is not None and self.lines is not None and scope["method"] == "POST":
                await self.lines(line_route, scope, receive)
                return
            if scope["method"] == "HEAD":
                scope["method"] = "GET"  # the listener knows that nobody wants the body
            scope["taas.request_id"] = new_request_id()
            send = _with_request_id(scope, send)
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document, inference routes included."""
        if not self.openapi_schema:
            document = get_openapi(title=self.title, version=self.version, routes=self.routes)
            document["paths"] = inference_paths() | document["paths"]
            document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
            self.openapi_schema = document
        return self.openapi_schema


def build_app(settings: GatewaySettings, lifecycle: Lifecycle, metrics: Metrics) -> FastAPI:
    """The app of one process; nothing is opened before its lifespan starts."""
    stages = Stages(settings, lifecycle, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with stages.running():
            yield

    app = GatewayApp(
        title="Token-as-a-service gateway",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.stages = stages
    app.lines = serving_lines(stages.inference, settings.service_key) if settings.batch else None
    app.include_router(listing_router(stages.catalogue, stages.clock, stages.readiness, stages.billing))
    app.include_router(organization_router(stages.billing))
    app.include_router(batch_router(stages.catalogue, stages.clock, settings))
    app.add_exception_handler(GatewayError, _on_gateway_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _without_trailing_slash(scope: Scope) -> bool:
    """Treat `/v1/models/` as `/v1/models`, before anything is decided by the path. Returns whether there was
    a slash.
    """
    raw_path: bytes = scope["raw_path"]
    if len(raw_path) < 2 or raw_path[-1:] != b"/":
        return False
    scope["raw_path"], scope["path"] = raw_path[:-1], scope["path"][:-1]
    return True


def _refuse(inference_route: RouteSpec, error: GatewayError, scope: Scope) -> None:
    Client(
        scope["extensions"]["taas.connection"], inference_route, new_request_id(), time.monotonic()
    ).refuse(error)


def _spoken(scope: Scope) -> Dialect:
    """The dialect that a caller outside inference seems to use."""
    anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return Dialect.ANTHROPIC if anthropic else dialect_of_path(scope["path"])


def _with_request_id(scope: Scope, send: Send) -> Send:
    """Adds a request id to every answer outside inference, whoever makes the answer."""

    async def with_id(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            ids = id_headers(_spoken(scope), scope["taas.request_id"])
            message["headers"] = [*message.get("headers", ()), *ids]
        await send(message)

    return with_id


def _error_response(request: Request, error: GatewayError) -> Response:
    """An error outside inference, in the dialect that the caller seems to use."""
    body = error_body(error, _spoken(request.scope), request.scope["taas.request_id"])
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(body, error.status, headers)


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return _error_response(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "GET")
        if allow == "GET":
            allow = "GET, HEAD"
        return _error_response(request, MethodNotAllowed(allow))
    return _error_response(request, RouteNotFound())


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("bug outside inference", exc_info=error)
    return _error_response(request, GatewayError())
