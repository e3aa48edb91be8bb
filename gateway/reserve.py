"""What a request may cost before it is sent, and whether it may be sent: the policy over the reserve script.

A reservation starts small (the prompt by estimate and the first output tokens): checkpoints top it up as the
output streams, and settling puts it right. So a large `max_tokens` costs nothing that is not used. Where
there is no room, on-demand and flex wait before they are refused.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from billing.cell.replies import (
    Later,
    Left,
    Levels,
    Rebuilding,
    Replayed,
    Reserved,
    ReserveReply,
    Waiting,
    parse_leave,
    parse_reserve,
)
from billing.cell.scripts import Asked, Claim, Command, leave_call, refuse_call, reserve_call, settle_call
from billing.wire.attribution import attribute
from billing.wire.instance_entry import InstanceEntry
from billing.wire.limits import Limits
from billing.wire.tokens import Tokens, Weights
from billing.wire.usage_event import Ending, EventHead, UsageEvent, UsageSource
from gateway.errors import (
    CallerLeft,
    DependencyUnavailable,
    GatewayError,
    NoInstance,
    Overloaded,
    QuotaExceeded,
    RequestStopped,
)
from gateway.exchange import Exchange
from gateway.redis.journal import Journal
from gateway.redis.journal_records import Admission
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.request import ParsedRequest, ServiceTier
from gateway.waiting.outage import OutageLeases
from gateway.waiting.pace import Pacer
from gateway.waiting.queue import Line, WaitEnd
from gateway.waiting.refusals import refusal, spread

# About as much as streams in the first second, until the first checkpoint.
FIRST_OUTPUT_TOKENS: Final = 64
# Less than half of what the script grants to those who wait: coming back is all that waiting costs, and
# on-demand need not.
WAIT_RENEW_S: Final = 20.0
BEHIND_S_MIN: Final = 1.0
# Levels are counted anew within a second or two of their loss.
REBUILT_POLL_S: Final = 0.2
RETRY_MS_MIN: Final = 1_000
# A request that waits outlives an outage of Redis that is shorter than its wait.
AWAY_POLL_S: Final = 0.5
_COMES_BACK: Final = (Waiting, Later, Rebuilding)
_UNKNOWN: Final = Levels(0)
_LEVELS: Final = ("level_before_mu", "level_after_mu", "rate_mu_s")
_CONTRACTS_FIRST: Final = (ServiceTier.AUTO, ServiceTier.PRIORITY)
_ASKED: Final = {
    ServiceTier.AUTO: Asked.AUTO,
    ServiceTier.DEFAULT: Asked.ON_DEMAND,
    ServiceTier.FLEX: Asked.FLEX,
    ServiceTier.PRIORITY: Asked.RESERVED,
}


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How long a request may wait for room, by class; how many of a tenant may; and how many may be left
    before their first token, a minute.
    """

    on_demand_s: float
    flex_s: float
    requests_per_tenant: int
    cancels_per_minute: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """An admitted request: its limits and how full its buckets are (for the `x-ratelimit-*` headers)."""

    tenant_limits: Limits
    key_limits: Limits
    tenant_levels: Levels
    key_levels: Levels


def first_cost_mu(parsed: ParsedRequest, default_max_tokens: int, weights: Weights) -> int:
    """Milliunits to hold at first: each prompt once, `samples` times the first output tokens."""
    if not parsed.route.metered:
        return 0
    output_tokens = min(FIRST_OUTPUT_TOKENS, parsed.max_output_tokens or default_max_tokens)
    if not parsed.route.generates:
        output_tokens = 0
    return weights.w_in_mu * parsed.input_tokens_estimate + weights.w_out_mu * output_tokens * parsed.samples


def most_tokens(parsed: ParsedRequest, default_max_tokens: int) -> int:
    """Tokens to hold at first: the prompt and all that may be produced, as a limit of tokens must not be
    passed by it.
    """
    if not parsed.route.metered:
        return 0
    output_tokens = (
        (parsed.max_output_tokens or default_max_tokens) * parsed.samples if parsed.route.generates else 0
    )
    return parsed.input_tokens_estimate + output_tokens


def died_event(head: EventHead, ended_ms: int) -> UsageEvent:
    """What is recorded of a request whose gateway dies before its first checkpoint: nothing was produced
    that anybody knows of.
    """
    nothing = attribute(Ending.GATEWAY_DIED, Tokens())
    return head.ended(
        ending=Ending.GATEWAY_DIED,
        usage_source=UsageSource.UNREAD,
        produced=nothing.produced,
        billed=nothing.billed,
        absorbed=nothing.absorbed,
        units_mu=0,
        http_status=0,
        ended_ms=ended_ms,
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
        line: Line,
        pacer: Pacer,
        policy: WaitPolicy,
        opened: Callable[[Exchange], None],
    ) -> None:
        self._redis = redis
        self._outage = outage
        self._journal = journal
        self._line = line
        self._pacer = pacer
        self._policy = policy
        self._opened = opened
        self._lease_ms = lease_ms
        self._will = b""

    async def reserve(
        self,
        exchange: Exchange,
        cost_mu: int,
        candidates: list[InstanceEntry],
        look_again: Callable[[], list[InstanceEntry]],
    ) -> Reservation:
        """Hold `cost_mu` and a place on an instance, waiting for one where that may help; the exchange learns
        its class and instance.

        `candidates`, best first, are looked up again after a wait. Raises QuotaExceeded, NoContractHere,
        PermissionDenied; DependencyUnavailable when Redis does not answer and the tenant has no lease, or
        when the journal takes no more: admission stops before money is lost; RequestStopped or CallerLeft
        when it was told to end while it waited.
        """
        if self._journal.full:
            raise DependencyUnavailable
        ask = self._ask(
            exchange, cost_mu, most_tokens(exchange.parsed, exchange.request.model.default_max_tokens)
        )
        try:
            reply = await self._try(exchange, ask, candidates)
            if isinstance(reply, _COMES_BACK):
                reply, candidates = await self._wait(exchange, ask, look_again, reply)
        except RedisUnavailable as exc:
            if exc.unknown_outcome:
                self._leave(exchange)  # it may stand in line, and nobody comes back for it
            if self._outage.take(exchange.request.caller.tenant, cost_mu):
                self._admit_by_lease(exchange, ask)
                return Reservation(Limits(), Limits(), _UNKNOWN, _UNKNOWN)
            raise DependencyUnavailable from exc
        if isinstance(reply, Reserved | Replayed):
            exchange.admitted(reply.grant, candidates, ask.asked)
            return Reservation(ask.tenant_limits, ask.key_limits, reply.tenant, reply.key)
        now_ms = exchange.at_ms(time.monotonic())
        raise refusal(reply, ask.tenant_limits, ask.key_limits, exchange.parsed.route.dialect, now_ms)

    def _admit_by_lease(self, exchange: Exchange, ask: "_Ask") -> None:
        """Redis hears of it as soon as it is back: from us that it runs or, if we die before, from whoever
        finds the journal that it ran.
        """
        self._opened(exchange)
        exchange.decision = {"asked": ask.asked.value, "why": "local_lease"} | dict.fromkeys(_LEVELS, 0)
        ask = replace(ask, asked=Asked(exchange.head.class_.value), head=exchange.head.to_json(), tokens=0)
        died = died_event(exchange.head, exchange.at_ms(time.monotonic()))
        self._journal.append_admission(
            Admission(
                reserve=self._call(exchange, ask, [exchange.attempt.instance], restored=True),
                died=settle_call(exchange.request.keys, cost_mu=0, event=died.to_json()),
            )
        )

    def no_instance(self, cell: str, tenant: str, asked: ServiceTier) -> None:
        """A request could not even ask: its contract, if it would have come under one, counts it as
        refused. Best effort, nobody waits for it.
        """
        if asked in _CONTRACTS_FIRST:
            self._redis.submit(*refuse_call(cell, tenant)).add_done_callback(_heard)

    def _ask(self, exchange: Exchange, cost_mu: int, tokens: int) -> "_Ask":
        model, caller = exchange.head.model, exchange.request.caller
        if not self._will:
            self._will = died_event(exchange.head, 0).will_json()
        asked = _ASKED[exchange.parsed.asked]
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
        """Hold again what Redis has lost of a request that runs; `cost_mu` is what it has used. Raises
        RedisUnavailable.
        """
        used = exchange.attempt.meter.produced()
        ask = self._ask(exchange, cost_mu, used.prompt + used.output)
        ask = replace(ask, asked=Asked(exchange.head.class_.value), head=exchange.head.to_json())
        await self._try(exchange, ask, [exchange.attempt.instance], restored=True)

    async def _try(
        self, exchange: Exchange, ask: "_Ask", candidates: list[InstanceEntry], *, restored: bool = False
    ) -> ReserveReply:
        reply = parse_reserve(
            await self._redis.execute(*self._call(exchange, ask, candidates, restored=restored))
        )
        if isinstance(reply, Reserved | Replayed) and not restored:
            self._opened(exchange)  # before anything else can fail: from here on it is settled
        if isinstance(reply, Waiting):
            self._pacer.again(exchange.head.cell, reply.pace_ms)
        return reply

    def _call(
        self, exchange: Exchange, ask: "_Ask", candidates: list[InstanceEntry], *, restored: bool = False
    ) -> Command:
        tenant = exchange.request.caller.tenant
        claim = Claim(
            tenant=tenant.tenant,
            candidates=[(entry.instance, entry.epoch) for entry in candidates],
            asked=ask.asked,
            on_demand=tenant.on_demand,
            weight=tenant.weight,
            sequences=ask.sequences,
            gateway=exchange.head.gateway,
            wait_max=self._policy.requests_per_tenant if self._line.listening else 0,
            cancels_per_minute=self._policy.cancels_per_minute,
            resumed=exchange.previous is not None,
            can_resume=exchange.resumable is not None,
            prompt_mu=exchange.parsed.input_tokens_estimate * exchange.request.model.weights.w_in_mu
            if ask.sequences
            else 0,
            tokens=ask.tokens,
            restored=restored,
        )
        return reserve_call(
            exchange.request.keys,
            lease_ms=self._lease_ms,
            cost_mu=ask.cost_mu,
            tenant=ask.tenant_limits,
            key=ask.key_limits,
            claim=claim,
            head=ask.head,
            will=self._will,
        )

    async def _wait(
        self,
        exchange: Exchange,
        ask: "_Ask",
        look_again: Callable[[], list[InstanceEntry]],
        reply: Waiting | Later | Rebuilding,
    ) -> tuple[ReserveReply, list[InstanceEntry]]:
        """Until it is admitted, refused, told to end, or its time is over: then it is refused with a time
        to come back.
        """
        wait_s = self._policy.flex_s if ask.asked is Asked.FLEX else self._policy.on_demand_s
        candidates: list[InstanceEntry] = []
        began_at = time.monotonic()
        ends_at = began_at + wait_s
        try:
            turn = self._line.enter(exchange)
        except Overloaded:
            self._leave(exchange)
            raise
        found: ReserveReply = reply
        away = False
        try:
            while isinstance(found, _COMES_BACK) and exchange.stop_ending is None:
                left_s = ends_at - time.monotonic()
                if left_s <= 0:
                    raise await self._out_of_time(exchange, found, wait_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(AWAY_POLL_S if away else _nap_s(found), left_s)):
                        await turn.wait()
                # Before it asks: a wake that comes while it does is for the next answer.
                turn.clear()
                if exchange.stop_ending is None:
                    candidates = look_again()
                    try:
                        found, away = await self._try(exchange, ask, candidates), False
                    except RedisUnavailable:
                        # It may be back before the wait is over; who asked under this id is known to it then.
                        if time.monotonic() >= ends_at:
                            raise
                        away = True
            if exchange.stop_ending is not None:
                await self._give_up(exchange, found)
            ended = WaitEnd.ADMITTED if isinstance(found, Reserved | Replayed) else WaitEnd.REFUSED
        except BaseException as error:
            ended = WaitEnd.of(error)
            if not isinstance(found, Reserved | Replayed):
                # Cancelled, or Redis has gone: it must not keep a place that it was granted.
                self._leave(exchange, refused=isinstance(error, NoInstance))
            raise
        finally:
            exchange.waited_ms = int((time.monotonic() - began_at) * 1000)
            self._line.leave(exchange, ended)
        return found, candidates

    def _leave(self, exchange: Exchange, *, refused: bool = False) -> None:
        """Out of the line, and out of a place that was granted. What Redis cannot hear now it hears when it
        is back, as a settle: else whoever gave up would stand before others, and hold places that nobody
        comes for.
        """
        call = leave_call(exchange.request.keys, refused=refused)
        self._redis.submit(*call).add_done_callback(partial(self._left, call, exchange.head.cell))

    def _left(self, call: Command, cell: str, outcome: "asyncio.Future[Any]") -> None:
        if outcome.cancelled():
            return
        if outcome.exception() is None:
            self._pacer.again(cell, parse_leave(outcome.result()).pace_ms)
        elif isinstance(outcome.exception(), RedisUnavailable):
            self._journal.append(call)

    async def _leave_now(self, exchange: Exchange, *, refused: bool = False) -> Left:
        left = parse_leave(await self._redis.execute(*leave_call(exchange.request.keys, refused=refused)))
        self._pacer.again(exchange.head.cell, left.pace_ms)
        return left

    async def _out_of_time(
        self, exchange: Exchange, found: Waiting | Later | Rebuilding, wait_s: float
    ) -> GatewayError:
        if isinstance(found, Rebuilding):
            return DependencyUnavailable(RETRY_MS_MIN)
        left = await self._leave_now(exchange, refused=True)
        if isinstance(found, Later):
            return QuotaExceeded("contract", "The contract's capacity is in use.", spread(found.after_ms))
        retry_ms = max(RETRY_MS_MIN, math.ceil(left.tenants_waiting * left.between_grants_ms))
        return QuotaExceeded("room", f"There was no room within {wait_s:g} s.", spread(retry_ms))

    async def _give_up(self, exchange: Exchange, found: ReserveReply) -> None:
        assert exchange.stop_ending is not None
        if isinstance(found, Reserved):
            return  # admitted in the same moment: it ends as any other that is stopped
        await self._leave_now(exchange)
        if exchange.stop_ending is Ending.CLIENT_DISCONNECT:
            raise CallerLeft
        raise RequestStopped(exchange.stop_ending.value)


def _heard(outcome: "asyncio.Future[Any]") -> None:
    """Whatever came of it is known."""
    if not outcome.cancelled():
        outcome.exception()


def _nap_s(found: Waiting | Later | Rebuilding) -> float:
    if isinstance(found, Later):
        # Behind others it is woken; what it was told is a guess, and by then there may be nobody left to wake
        # it.
        return min(WAIT_RENEW_S, max(found.after_ms / 1000, BEHIND_S_MIN if found.before else 0.0))
    return REBUILT_POLL_S if isinstance(found, Rebuilding) else WAIT_RENEW_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """What one request asks its cell for, however often it has to ask."""

    asked: Asked
    cost_mu: int
    tokens: int
    sequences: int
    tenant_limits: Limits
    key_limits: Limits
    head: bytes
