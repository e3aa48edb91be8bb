"""Takes an inference request through its stages, in order. It reads the ASGI scope and body and writes to the
connection in the scope's extensions: there is no Starlette request, and no object for each chunk.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from billing.cell.scripts import CellKeys
from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import CapacityClass, EventHead
from gateway.authenticate import Caller
from gateway.body import read_body
from gateway.budgets import Budgets
from gateway.catalogue.body_caps import BodyCaps
from gateway.catalogue.entries import Model, Tenant
from gateway.catalogue.feed import Catalogue
from gateway.clock import Clock
from gateway.edge.client import Client
from gateway.edge.heartbeat import Heartbeats
from gateway.errors import (
    BodyTooLarge,
    ClientDisconnected,
    GatewayError,
    NoInstance,
    QuotaExceeded,
    UnsupportedParameter,
)
from gateway.exchange import Exchange, Request, Resumable
from gateway.failover import Interrupted, ending_of
from gateway.forward import NO_INSTANCE_RETRY_MS, Forwarder, Settle
from gateway.idempotency import KEY_HEADER, Idempotency, IdempotencyKey
from gateway.metrics import Metrics
from gateway.protocol import check_against_model, parse_request
from gateway.protocol.ignored import IGNORED_HEADER, STRICT_HEADER, header_value, metric_name
from gateway.quarantine import Quarantine
from gateway.request import ParsedRequest, RouteSpec
from gateway.reserve import Reserver, first_cost_mu, most_output
from gateway.resume import Resumer
from gateway.route import CANDIDATES_MAX, candidates, ready
from gateway.routing.choice import Choice
from gateway.routing.router import Router
from gateway.upstream.adapters import adapter_of
from gateway.upstream.attempt import Attempt
from gateway.upstream.engines import Engines
from gateway.waiting.limit_headers import limit_headers
from gateway.waiting.receiving import Receiving
from gateway.waiting.waking import WakingRoom

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
RawHeaders = Iterable[tuple[bytes, bytes]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CLASS_HEADERS: Final = {each: (b"x-taas-class", each.value.encode()) for each in CapacityClass}


@dataclass(slots=True, kw_only=True)
class InferenceApi:
    """Serves the inference requests of one process. `open_exchanges`: admitted and not yet settled, by
    request id. `new_request_id` makes the id of a request and `authenticate` finds its caller; both read its
    headers.
    """

    gateway_id: str
    catalogue: Catalogue
    engines: Engines
    router: Router
    quarantine: Quarantine
    cache_salt: Callable[[str], str]
    budgets: Budgets
    idempotency: Idempotency
    reserver: Reserver
    forwarder: Forwarder
    settle: Settle
    resumer: Resumer
    heartbeats: Heartbeats
    metrics: Metrics
    clock: Clock
    open_exchanges: dict[str, Exchange]
    body_caps: BodyCaps
    receiving: Receiving
    waking: WakingRoom
    new_request_id: Callable[[RawHeaders], str]
    authenticate: Callable[[RawHeaders, Catalogue, int], Awaitable[Caller]]

    async def __call__(self, route: RouteSpec, scope: Scope, receive: Receive) -> None:
        """Serve one request. The caller gets every error in its dialect, with the request id."""
        started_at = time.monotonic()
        request_id = self.new_request_id(scope["headers"])
        client = Client(scope["extensions"]["taas.connection"], route, request_id, started_at)
        try:
            await self._serve(route, scope, receive, client, started_at)
        except GatewayError as error:
            self._count_refusal(error)
            if client.started:  # the stream has begun, so the error must be an event in it
                client.end_with_error(error)
            elif not isinstance(error, ClientDisconnected):
                client.refuse(error)
        except Exception:
            log.exception("bug in a request", extra={"request_id": request_id})
            if client.started:
                client.end_with_error(GatewayError())
            else:
                client.refuse(GatewayError())

    async def _serve(
        self, route: RouteSpec, scope: Scope, receive: Receive, client: Client, started_at: float
    ) -> None:
        caller = await self.authenticate(scope["headers"], self.catalogue, self.clock.at_ms(started_at))
        tenant = caller.tenant
        raw = await read_body(scope, receive, self.body_caps.of_tenant(tenant), self.receiving, tenant.tenant)
        key = None
        if KEY_HEADER in dict(scope["headers"]):
            key = IdempotencyKey.of(scope["headers"], route, raw)
        parsed = parse_request(route, raw)
        model = caller.find_model(self.catalogue, parsed.model, self.clock.at_ms(started_at))
        body_bytes = len(raw)
        del raw  # else it would stay in memory until the answer ends
        if body_bytes > (cap_bytes := self.body_caps.of_model(model)):
            raise BodyTooLarge(cap_bytes)
        serving = self.catalogue.serving(model.name, route.facts.offered_as)
        parsed = check_against_model(parsed, model, serving)
        self.quarantine.check(parsed, tenant.tenant)
        if parsed.ignored:
            self._report_ignored(parsed, scope, client)
        choice = None
        if len(serving) > 1:
            salt = self.cache_salt(tenant.tenant)
            choice = Choice(self.router, parsed, model, salt, scope["headers"])
        request = Request(
            request_id=client.request_id,
            parsed=parsed,
            caller=caller,
            model=model,
            keys=CellKeys.of(
                model.cell,
                request_id=client.request_id,
                tenant=tenant.tenant,
                key_id=caller.key.key_id,
                model=model.name,
            ),
            started_at=started_at,
            body_bytes=body_bytes,
            client_connection=client.connection,
        )
        if key is None:
            await self._run(request, choice, client)
        else:
            await self.idempotency.run_once(
                key, request, client, lambda claimed: self._run(claimed, choice, client)
            )

    async def _run(self, request: Request, choice: Choice | None, client: Client) -> None:
        """Admit the request, forward it and settle it."""
        model, parsed, tenant = request.model, request.parsed, request.caller.tenant
        woken_ms = 0
        try:
            # Nothing is reserved yet, so a failure leaks nothing.
            if model.wakes:
                woken_ms = await self._wake(model, parsed, tenant, client)
            found = self._candidates(model, parsed.route, choice)
        except NoInstance:
            self.reserver.no_instance(model.cell, tenant.tenant, parsed.service_tier)
            raise
        exchange = self._exchange(request, found[0], choice)
        exchange.waited_ms = woken_ms
        with _Settling(self, exchange, client):
            if tenant.budgets:
                output_tokens = most_output(parsed, model.default_max_tokens)
                await self.budgets.hold(exchange, parsed.input_tokens_estimate, output_tokens)
            cost_mu = first_cost_mu(parsed, model.default_max_tokens, model.weights)
            reservation = await self.reserver.reserve(
                exchange, cost_mu, found, lambda: self._candidates(model, parsed.route, choice)
            )
            client.instance = lambda: exchange.attempt.instance.instance
            client.headers += limit_headers(
                reservation.tenant_limits, reservation.key_limits, reservation.tenant_levels,
                reservation.key_levels, parsed.route.dialect, self.clock.at_ms(time.monotonic()),
            )  # fmt: skip
            client.headers.append(_CLASS_HEADERS[exchange.head.class_])
            await self._forward(exchange, client)

    def settle_failed(self, exchange: Exchange, error: BaseException, client: Client) -> None:
        """Settle an admitted exchange that failed. One that was not admitted only releases what it holds of
        budgets. Does nothing if the exchange is settled, or has ended and waits for its engine's final
        count.
        """
        if exchange.is_over:
            return
        if exchange.request_id not in self.open_exchanges:
            self.budgets.release(exchange)
            return
        if isinstance(error, GatewayError):
            self.settle(exchange, ending_of(exchange, error), 200 if client.started else error.status)
        else:
            self.settle(exchange, exchange.stop_ending or Ending.GATEWAY_STOPPED, 500)

    async def _forward(self, exchange: Exchange, client: Client) -> None:
        """Forward the exchange until it ends, resuming it in a new part each time it is interrupted."""
        part: Exchange | None = exchange
        while part is not None:
            try:
                await self.forwarder.forward(part, client)
                return
            except Interrupted as interrupted:
                candidates = partial(self._candidates_to_resume, part)
                part = await self.resumer.resume(part, interrupted, client, candidates)

    async def _wake(self, model: Model, parsed: ParsedRequest, tenant: Tenant, client: Client) -> int:
        """Wait for a ready instance that serves this route; billing is told to start one. Returns the wait in
        ms. Raises NoInstance, ClientDisconnected.
        """

        def is_there() -> bool:
            return bool(ready(self.catalogue.serving(model.name, parsed.route.facts.offered_as)))

        if is_there():
            return 0
        began_at = time.monotonic()
        if parsed.stream:
            self.heartbeats.watch(client)
        try:
            await self.waking.wait(model, tenant.tenant, is_there, client.connection.is_disconnected)
        finally:
            self.heartbeats.forget(client)
        return int((time.monotonic() - began_at) * 1000)

    def _report_ignored(self, parsed: ParsedRequest, scope: Scope, client: Client) -> None:
        """Name the ignored fields in a header of the answer. Refuse the request instead if it has
        `x-taas-strict: 1`.
        """
        if any(name == STRICT_HEADER and value.strip() == b"1" for name, value in scope["headers"]):
            raise UnsupportedParameter(parsed.ignored[0], "It would be ignored, and x-taas-strict is 1.")
        client.headers.append((IGNORED_HEADER, header_value(parsed.ignored)))
        for place in parsed.ignored:
            self.metrics.ignored_field(metric_name(place))

    def _candidates(
        self, model: Model, route: RouteSpec, choice: Choice | None, excluded: Collection[str] = ()
    ) -> list[InstanceEntry]:
        engines, now = self.engines, time.monotonic()
        there = registered = ready(self.catalogue.serving(model.name, route.facts.offered_as), excluded)
        if engines.breakers.troubled:
            there = engines.breakers.usable(registered, now)
        if choice is None:
            found = candidates(there, engines.open_here, engines.breakers, now)
        else:
            found = choice.ranked(there)[:CANDIDATES_MAX]
        if not found:
            raise engines.breakers.error(registered, now) or NoInstance(NO_INSTANCE_RETRY_MS)
        return found

    def _candidates_to_resume(self, part: Exchange) -> list[InstanceEntry]:
        found = self._candidates(part.request.model, part.parsed.route, part.choice, part.tried)
        found = [entry for entry in found if adapter_of(entry).CONTINUES_TEXT]
        if not found:
            raise NoInstance(NO_INSTANCE_RETRY_MS)
        return found

    def _exchange(self, request: Request, instance: InstanceEntry, choice: Choice | None) -> Exchange:
        parsed, model, key = request.parsed, request.model, request.caller.key
        head = EventHead(
            request_id=request.request_id,
            tenant=request.caller.tenant.tenant,
            project=key.project,
            key_id=key.key_id,
            model=model.name,
            pool=model.pool,
            cell=model.cell,
            instance=instance.instance,
            epoch=instance.epoch,
            route=parsed.route.name.value,
            stream=parsed.stream,
            class_=CapacityClass.ON_DEMAND,
            contract=None,
            weights=model.weights,
            samples=parsed.samples,
            started_ms=self.clock.at_ms(request.started_at),
            gateway=self.gateway_id,
            line=request.caller.line,
        )
        attempt = Attempt.on(instance, parsed, request.request_id)
        resumable = Resumable.of(parsed)
        exchange = Exchange(request=request, head=head, attempt=attempt, resumable=resumable, choice=choice)
        if request.claim is not None:
            request.claim.exchange = exchange
        return exchange

    def _count_refusal(self, error: GatewayError) -> None:
        """Count a refused request in the metrics. A request whose client disconnected was not refused."""
        if not isinstance(error, ClientDisconnected):
            self.metrics.refused(error.limit if isinstance(error, QuotaExceeded) else error.code)


class _Settling:
    """Calls `settle_failed` if the `with` block fails: an admitted exchange that nobody settles would stay
    open until the process ends. During the block, a stream gets heartbeats, and the exchange is told if the
    client disconnects.
    """

    __slots__ = ("_api", "_client", "_exchange")

    def __init__(self, api: InferenceApi, exchange: Exchange, client: Client) -> None:
        self._api = api
        self._exchange = exchange
        self._client = client

    def __enter__(self) -> None:
        if self._exchange.parsed.stream:
            self._api.heartbeats.watch(self._client)
        self._client.connection.on_disconnect(self._exchange.on_client_disconnect)

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            if error is not None:
                self._api.settle_failed(self._exchange.current_part, error, self._client)
        finally:
            self._api.heartbeats.forget(self._client)
            self._client.connection.on_disconnect(None)
