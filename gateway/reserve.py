"""Reserves a request before it is sent to an engine: the policy over the reserve script.

A reservation starts small, with the estimated prompt and the first output tokens. Checkpoints top it up as
the output streams, and settle corrects it. So a large `max_tokens` costs nothing until it is used. When no
slot is free, on-demand and flex requests wait before they are refused.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from msgspec.structs import asdict, replace

from billing.cell.replies import (
    LeftQueue,
    Levels,
    Rebuilding,
    Replayed,
    Reserved,
    ReserveReply,
    Waiting,
    WaitingForContract,
    parse_leave,
    parse_reserve,
)
from billing.cell.scripts import (
    Claim,
    Command,
    Tier,
    leave_call,
    refuse_call,
    reserve_call,
    settle_call,
)
from billing.wire.attribution import attribute
from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry
from billing.wire.limits import Limits
from billing.wire.tokens import Delivered, Tokens, Weights
from billing.wire.usage_event import EventHead, UsageEvent, UsageSource
from billing.wire.value import Value
from gateway.errors import (
    DependencyUnavailable,
    GatewayError,
    NoInstance,
    Overloaded,
    QuotaExceeded,
    error_of,
)
from gateway.exchange import Exchange
from gateway.redis.journal import Journal
from gateway.redis.journal_records import Admission
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.request import ParsedRequest, ServiceTier
from gateway.waiting.outage import OutageLeases
from gateway.waiting.pace import Pacer
from gateway.waiting.queue import WaitEnd, WaitQueue
from gateway.waiting.refusals import refusal, with_jitter

# About as many tokens as stream before the first checkpoint.
FIRST_OUTPUT_TOKENS: Final = 64
# Less than half of the queue lease (45 s, `WAIT_MS` in queue.lua). The poll only renews that lease; on-demand
# requests time out before the first one.
WAIT_RENEW_S: Final = 20.0
BEHIND_POLL_S_MIN: Final = 1.0
# Billing recounts lost levels within a second or two.
REBUILT_POLL_S: Final = 0.2
RETRY_MS_MIN: Final = 1_000
# A waiting request survives an outage of Redis that is shorter than its wait.
AWAY_POLL_S: Final = 0.5
_PENDING: Final = (Waiting, WaitingForContract, Rebuilding)
_UNKNOWN: Final = Levels(0)
_LEVELS: Final = ("level_before_mu", "level_after_mu", "rate_mu_s")
_CONTRACTS_FIRST: Final = (ServiceTier.AUTO, ServiceTier.PRIORITY)
_TIERS: Final = {
    ServiceTier.AUTO: Tier.AUTO,
    ServiceTier.DEFAULT: Tier.ON_DEMAND,
    ServiceTier.FLEX: Tier.FLEX,
    ServiceTier.PRIORITY: Tier.RESERVED,
}


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How long a request may wait for a slot, by class; how many requests of a tenant may wait; and how many
    requests a minute a tenant may cancel before their first token.
    """

    on_demand_s: float
    flex_s: float
    requests_per_tenant: int
    cancels_per_minute: int


class Reservation(Value, frozen=True):
    """An admitted request: its limits and bucket levels, for the `x-ratelimit-*` headers."""

    tenant_limits: Limits
    key_limits: Limits
    tenant_levels: Levels
    key_levels: Levels


def first_cost_mu(parsed: ParsedRequest, default_max_tokens: int, weights: Weights) -> int:
    """Milliunits to reserve at first: each prompt once, and the first output tokens of each sample."""
    if not parsed.route.metered:
        return 0
    output_tokens = min(FIRST_OUTPUT_TOKENS, parsed.max_output_tokens or default_max_tokens)
    if not parsed.route.generates:
        output_tokens = 0
    return weights.w_in_mu * parsed.input_tokens_estimate + weights.w_out_mu * output_tokens * parsed.samples


def most_tokens(parsed: ParsedRequest, default_max_tokens: int) -> int:
    """Tokens to reserve: the prompt and the largest possible output, so that the request cannot exceed a
    token limit.
    """
    if not parsed.route.metered:
        return 0
    return parsed.input_tokens_estimate + most_output(parsed, default_max_tokens)


def most_output(parsed: ParsedRequest, default_max_tokens: int) -> int:
    """The largest possible output, in tokens."""
    if not parsed.route.generates:
        return 0
    return (parsed.max_output_tokens or default_max_tokens) * parsed.samples


def died_event(head: EventHead, ended_ms: int) -> UsageEvent:
    """The crash event of a request before its first checkpoint: it produced nothing that is known."""
    nothing = attribute(Ending.GATEWAY_DIED, Tokens(0, 0, 0))
    return UsageEvent(
        **asdict(head),
        ending=Ending.GATEWAY_DIED,
        usage_source=UsageSource.UNREAD,
        produced=nothing.produced,
        billed=nothing.billed,
        absorbed=nothing.absorbed,
        units_mu=0,
        http_status=0,
        ended_ms=ended_ms,
        first_token_ms=None,
        waited_ms=0,
        delivered=Delivered(0),
        anomaly=None,
    )


class Reserver:
    """Reserves on behalf of one process."""

    def __init__(
        self,
        *,
        redis: RedisPipe,
        lease_ms: int,
        outage: OutageLeases,
        journal: Journal,
        queue: WaitQueue,
        pacer: Pacer,
        policy: WaitPolicy,
        opened: Callable[[Exchange], None],
    ) -> None:
        self._redis = redis
        self._outage = outage
        self._journal = journal
        self._wait_queue = queue
        self._pacer = pacer
        self._policy = policy
        self._opened = opened
        self._lease_ms = lease_ms
        self._crash_event = b""

    async def reserve(
        self,
        exchange: Exchange,
        cost_mu: int,
        candidates: list[InstanceEntry],
        find_candidates: Callable[[], list[InstanceEntry]],
    ) -> Reservation:
        """Reserve `cost_mu` and a slot on an instance, waiting for a slot if that may help. Sets the
        exchange's class and instance.

        `candidates`, best first, are looked up again after a wait. Raises QuotaExceeded, NoContractHere or
        PermissionDenied; RequestStopped or ClientDisconnected if the request was to end while it waited;
        DependencyUnavailable if Redis does not answer and the tenant has no local lease, or if the journal is
        full: admission stops before money is lost.
        """
        if self._journal.full:
            raise DependencyUnavailable
        ask = self._ask(
            exchange, cost_mu, most_tokens(exchange.parsed, exchange.request.model.default_max_tokens)
        )
        try:
            reply = await self._ask_cell(exchange, ask, candidates)
            if isinstance(reply, _PENDING):
                reply, candidates = await self._wait(exchange, ask, find_candidates, reply)
        except RedisUnavailable as exc:
            by_lease = self._outage.admit(exchange.request.caller.tenant, cost_mu)
            if exc.unknown_outcome:
                # It may be in the queue or admitted, and nobody would come back for it.
                self._leave_queue(exchange, withdrawn=not by_lease)
            if by_lease:
                self._admit_by_lease(exchange, ask)
                return Reservation(Limits(), Limits(), _UNKNOWN, _UNKNOWN)
            raise DependencyUnavailable from exc
        if isinstance(reply, Reserved | Replayed):
            exchange.admitted(reply.grant, candidates, ask.asked)
            return Reservation(ask.tenant_limits, ask.key_limits, reply.tenant, reply.key)
        now_ms = exchange.at_ms(time.monotonic())
        raise refusal(reply, ask.tenant_limits, ask.key_limits, exchange.parsed.route.dialect, now_ms)

    def _admit_by_lease(self, exchange: Exchange, ask: "_Ask") -> None:
        """Admit under the tenant's local lease. The journal keeps the admission until Redis is back. Then
        this gateway reserves it or, if it has died, the process that reads its journal records that the
        request ran.
        """
        self._opened(exchange)
        exchange.decision = {"asked": ask.asked.value, "why": "local_lease"} | dict.fromkeys(_LEVELS, 0)
        ask = replace(ask, asked=Tier(exchange.head.class_.value), head=exchange.head.to_json(), tokens=0)
        died = died_event(exchange.head, exchange.at_ms(time.monotonic()))
        self._journal.append_admission(
            Admission(
                reserve=self._call(exchange, ask, [exchange.attempt.instance], restored=True),
                died=settle_call(exchange.request.keys, cost_mu=0, event=died.to_json()),
            )
        )

    def no_instance(self, cell: str, tenant: str, asked: ServiceTier) -> None:
        """Count a request that found no instance as refused in its contract's evidence, if it has a contract.
        Best effort: nothing waits for the reply.
        """
        if asked in _CONTRACTS_FIRST:
            self._redis.send(*refuse_call(cell, tenant))

    def _ask(self, exchange: Exchange, cost_mu: int, tokens: int) -> "_Ask":
        model, caller = exchange.head.model, exchange.request.caller
        if not self._crash_event:
            self._crash_event = died_event(exchange.head, 0).crash_event_json()
        asked = _TIERS[exchange.parsed.service_tier]
        return _Ask(
            asked=asked,
            cost_mu=cost_mu,
            tokens=tokens,
            sequences=exchange.parsed.samples if exchange.parsed.route.metered else 0,
            tenant_limits=caller.tenant.limits.for_model(model),
            key_limits=caller.key.limits.for_model(model),
            head=exchange.head.admission_json(),
        )

    async def restore(self, exchange: Exchange, cost_mu: int) -> None:
        """Reserve again a running request whose reservation Redis has lost. `cost_mu`: what it has used.
        Raises RedisUnavailable.
        """
        used = exchange.attempt.meter.produced()
        ask = self._ask(exchange, cost_mu, used.prompt + used.output)
        ask = replace(ask, asked=Tier(exchange.head.class_.value), head=exchange.head.to_json())
        await self._ask_cell(exchange, ask, [exchange.attempt.instance], restored=True)

    async def _ask_cell(
        self, exchange: Exchange, ask: "_Ask", candidates: list[InstanceEntry], *, restored: bool = False
    ) -> ReserveReply:
        reply = parse_reserve(
            await self._redis.execute(*self._call(exchange, ask, candidates, restored=restored))
        )
        if isinstance(reply, Reserved | Replayed) and not restored:
            self._opened(exchange)  # before anything else can fail: from here on it will be settled
        if isinstance(reply, Waiting):
            self._pacer.schedule(exchange.head.cell, reply.pace_ms)
        return reply

    def _call(
        self, exchange: Exchange, ask: "_Ask", candidates: list[InstanceEntry], *, restored: bool = False
    ) -> Command:
        tenant, w_in_mu = exchange.request.caller.tenant, exchange.request.model.weights.w_in_mu
        preferred = None if exchange.choice is None else exchange.choice.preferred
        claim = Claim(
            tenant=tenant.tenant,
            candidates=[(entry.instance, entry.epoch) for entry in candidates],
            asked=ask.asked,
            on_demand=tenant.on_demand,
            weight=tenant.weight,
            sequences=ask.sequences,
            gateway=exchange.head.gateway,
            wait_max=self._policy.requests_per_tenant if self._wait_queue.listening else 0,
            cancels_per_minute=self._policy.cancels_per_minute,
            resumed=exchange.previous is not None,
            can_resume=exchange.resumable is not None,
            prompt_mu=exchange.parsed.input_tokens_estimate * w_in_mu if ask.sequences else 0,
            tokens=ask.tokens,
            restored=restored,
            prefers="" if preferred is None else preferred[0],
            cached_mu=0 if preferred is None else preferred[1] * w_in_mu,
        )
        return reserve_call(
            exchange.request.keys,
            lease_ms=self._lease_ms,
            cost_mu=ask.cost_mu,
            tenant=ask.tenant_limits,
            key=ask.key_limits,
            claim=claim,
            head=ask.head,
            crash_event=self._crash_event,
        )

    async def _wait(
        self,
        exchange: Exchange,
        ask: "_Ask",
        find_candidates: Callable[[], list[InstanceEntry]],
        reply: Waiting | WaitingForContract | Rebuilding,
    ) -> tuple[ReserveReply, list[InstanceEntry]]:
        """Wait until the request is admitted, refused or to end. When its time is over it is refused, with a
        time to retry.
        """
        wait_s = self._policy.flex_s if ask.asked is Tier.FLEX else self._policy.on_demand_s
        candidates: list[InstanceEntry] = []
        began_at = time.monotonic()
        ends_at = began_at + wait_s
        try:
            turn = self._wait_queue.enter(exchange)
        except Overloaded:
            self._leave_queue(exchange)
            raise
        found: ReserveReply = reply
        redis_away = unknown_outcome = False
        try:
            while isinstance(found, _PENDING) and exchange.stop_ending is None:
                left_s = ends_at - time.monotonic()
                if left_s <= 0:
                    raise await self._out_of_time(exchange, found, wait_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(
                        min(AWAY_POLL_S if redis_away else _poll_after_s(found), left_s)
                    ):
                        await turn.wait()
                # Before the call: a wake that arrives during it is about the reply after this one.
                turn.clear()
                if exchange.stop_ending is None:
                    candidates = find_candidates()
                    try:
                        found, redis_away = await self._ask_cell(exchange, ask, candidates), False
                    except RedisUnavailable as exc:
                        unknown_outcome |= exc.unknown_outcome
                        # Redis may be back before the wait is over, and the call is idempotent by request id.
                        if time.monotonic() >= ends_at:
                            raise RedisUnavailable(exc.reason, unknown_outcome=unknown_outcome) from exc
                        redis_away = True
            if exchange.stop_ending is not None:
                await self._stop_waiting(exchange, found)
            ended = WaitEnd.ADMITTED if isinstance(found, Reserved | Replayed) else WaitEnd.REFUSED
        except BaseException as error:
            ended = WaitEnd.of(error)
            if not isinstance(found, Reserved | Replayed):
                # Cancelled, or Redis is away: the request must not keep a slot that it was granted. A local
                # lease may still serve it, if Redis is away.
                away = isinstance(error, RedisUnavailable)
                self._leave_queue(exchange, refused=isinstance(error, NoInstance), withdrawn=not away)
            raise
        finally:
            waited_s = time.monotonic() - began_at
            exchange.waited_ms += int(waited_s * 1000)
            self._wait_queue.leave(exchange, ended, waited_s)
        return found, candidates

    def _leave_queue(self, exchange: Exchange, *, refused: bool = False, withdrawn: bool = True) -> None:
        """Leave the queue, and give back a slot that was granted; `withdrawn`: also a reservation, of which
        the reply was lost. If Redis is away the journal sends this later, as it does a settle: else an
        abandoned request would stay ahead of others and hold its slot.
        """
        call = leave_call(exchange.request.keys, refused=refused, withdrawn=withdrawn)
        self._redis.submit(*call).add_done_callback(partial(self._on_left_queue, call, exchange.head.cell))

    def _on_left_queue(self, call: Command, cell: str, outcome: "asyncio.Future[Any]") -> None:
        if outcome.cancelled():
            return
        if outcome.exception() is None:
            self._pacer.schedule(cell, parse_leave(outcome.result()).pace_ms)
        elif isinstance(outcome.exception(), RedisUnavailable):
            self._journal.append(call)

    async def _leave_queue_now(self, exchange: Exchange, *, refused: bool = False) -> LeftQueue:
        call = leave_call(exchange.request.keys, refused=refused, withdrawn=True)
        left = parse_leave(await self._redis.execute(*call))
        self._pacer.schedule(exchange.head.cell, left.pace_ms)
        return left

    async def _out_of_time(
        self, exchange: Exchange, found: Waiting | WaitingForContract | Rebuilding, wait_s: float
    ) -> GatewayError:
        if isinstance(found, Rebuilding):
            return DependencyUnavailable(RETRY_MS_MIN)
        left = await self._leave_queue_now(exchange, refused=True)
        if isinstance(found, WaitingForContract):
            return QuotaExceeded(
                "contract", "The contract's capacity is in use.", with_jitter(found.after_ms)
            )
        retry_ms = max(RETRY_MS_MIN, math.ceil(left.tenants_waiting * left.between_grants_ms))
        return QuotaExceeded("room", f"No slot became free within {wait_s:g} s.", with_jitter(retry_ms))

    async def _stop_waiting(self, exchange: Exchange, found: ReserveReply) -> None:
        assert exchange.stop_ending is not None
        if isinstance(found, Reserved | Replayed):
            return  # admitted at the same moment: it ends like any stopped request
        await self._leave_queue_now(exchange)
        raise error_of(exchange.stop_ending)


def _poll_after_s(found: Waiting | WaitingForContract | Rebuilding) -> float:
    if isinstance(found, WaitingForContract):
        # Behind other requests it is normally woken by a message. `after_ms` is an estimate and the gateway
        # that would wake it may be gone, so it also polls.
        return min(WAIT_RENEW_S, max(found.after_ms / 1000, BEHIND_POLL_S_MIN if found.before else 0.0))
    return REBUILT_POLL_S if isinstance(found, Rebuilding) else WAIT_RENEW_S


class _Ask(Value, frozen=True, kw_only=True):
    """What one request asks its cell for. It stays the same however often the request has to ask."""

    asked: Tier
    cost_mu: int
    tokens: int
    sequences: int
    tenant_limits: Limits
    key_limits: Limits
    head: bytes
