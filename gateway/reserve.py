"""What a request may cost before it is sent, and whether it may be sent: the policy over the reserve script.

A reservation starts small (the prompt by estimate and the first output tokens): checkpoints top it up as the output streams, and settling puts it
right. So a large `max_tokens` costs nothing that is not used. Raises QuotaExceeded.
"""

from dataclasses import dataclass
from typing import Final

from billing.attribution import attribute
from billing.cell.replies import AlreadySettled, Levels, LimitKind, LimitScope, Refused, parse_reserve
from billing.cell.scripts import CellKeys, Limits, reserve_call
from billing.tokens import Tokens, Weights
from billing.usage_event import Ending, EventHead, UsageSource
from gateway.authenticate import Caller
from gateway.errors import DependencyUnavailable, QuotaExceeded
from gateway.journal import Journal
from gateway.outage import OutageLeases
from gateway.redis_pipe import RedisPipe, RedisUnavailable
from gateway.request import ParsedRequest, Route

# About as much as streams in the first second, until the first checkpoint.
FIRST_OUTPUT_TOKENS: Final = 64
_UNKNOWN: Final = Levels(0.0, 0, 0)
UNMETERED_ROUTES: Final = frozenset({Route.COUNT_TOKENS, Route.TOKENIZE})


@dataclass(frozen=True, slots=True)
class Reservation:
    """An admitted request: its limits and how full its buckets are (for the `x-ratelimit-*` headers)."""

    tenant_limits: Limits
    key_limits: Limits
    tenant_levels: Levels
    key_levels: Levels


def first_cost_mu(parsed: ParsedRequest, default_max_tokens: int, weights: Weights) -> int:
    """Milliunits to hold at first: each prompt once, `samples` times the first output tokens."""
    if parsed.route in UNMETERED_ROUTES:
        return 0
    output_tokens = min(FIRST_OUTPUT_TOKENS, parsed.max_output_tokens or default_max_tokens)
    if parsed.route is Route.EMBEDDINGS:
        output_tokens = 0
    return weights.w_in_mu * parsed.input_tokens_estimate + weights.w_out_mu * output_tokens * parsed.samples


def _empty_will(head: EventHead) -> bytes:
    """What is recorded of a request whose gateway dies before its first checkpoint: nothing was produced that anybody knows of."""
    nothing = attribute(Ending.GATEWAY_DIED, Tokens())
    return head.ended(
        ending=Ending.GATEWAY_DIED,
        usage_source=UsageSource.NONE,
        produced=nothing.produced,
        billed=nothing.billed,
        absorbed=nothing.absorbed,
        units_mu=0,
        http_status=0,
        ended_ms=0,
    ).will_json()


class Reserver:
    """Reserves on behalf of one process."""

    def __init__(self, redis: RedisPipe, lease_ms: int, outage: OutageLeases, journal: Journal) -> None:
        self._redis = redis
        self._outage = outage
        self._journal = journal
        self._lease_ms = lease_ms
        self._will = b""

    async def reserve(self, head: EventHead, keys: CellKeys, cost_mu: int, caller: Caller) -> Reservation:
        """Hold `cost_mu` and a place. Raises QuotaExceeded; DependencyUnavailable when Redis does not answer and the tenant has no lease,
        or when the journal takes no more: admission stops before money is lost."""
        if self._journal.full:
            raise DependencyUnavailable
        tenant_limits = caller.tenant.limits.for_model(head.model)
        key_limits = caller.key.limits.for_model(head.model)
        if not self._will:
            self._will = _empty_will(head)
        call = reserve_call(
            keys,
            lease_ms=self._lease_ms,
            cost_mu=cost_mu,
            tenant=tenant_limits,
            key=key_limits,
            head=head.to_json(),
            will=self._will,
        )
        try:
            reply = parse_reserve(await self._redis.execute(*call))
        except RedisUnavailable as exc:
            if self._outage.take(caller.tenant, cost_mu):
                return Reservation(Limits(), Limits(), _UNKNOWN, _UNKNOWN)
            raise DependencyUnavailable from exc
        if isinstance(reply, Refused):
            raise quota_exceeded(reply, tenant_limits if reply.scope is LimitScope.TENANT else key_limits)
        assert not isinstance(reply, AlreadySettled), "request ids are ours and new"
        return Reservation(tenant_limits, key_limits, reply.tenant, reply.key)


def quota_exceeded(reply: Refused, limits: Limits) -> QuotaExceeded:
    """The refusal in words."""
    limit = {
        LimitKind.REQUESTS: f"{limits.requests} requests per minute",
        LimitKind.UNITS: f"{limits.units_mu // 1000} work units per minute",
        LimitKind.CONCURRENCY: f"{limits.concurrency} concurrent requests",
    }[reply.limit]
    return QuotaExceeded(
        reply.limit.value, f"Limit of this {reply.scope.value} reached: {limit}.", reply.retry_after_ms
    )
