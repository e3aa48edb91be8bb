"""Holds what a request may cost against the budgets that cover it, before it is reserved.

The most that it may cost is held: its prompt by estimate, and all output that it may produce. So what its
tenant spends exceeds a budget by no more than prompts were estimated too short. When the request has ended,
what it did cost is held, until billing has it in the ledger. While Redis is away nothing is held, and only a
local lease admits. Only requests of tenants with budgets come here.
"""

from collections.abc import Iterable
from typing import Final

from billing.cell.replies import BudgetFull, BudgetUnknown, parse_budget_hold
from billing.cell.scripts import budget_hold_call
from billing.wire.tokens import Tokens
from gateway.catalogue.entries import BudgetOf
from gateway.errors import BudgetUsedUp, DependencyUnavailable, QuotaExceeded
from gateway.exchange import Exchange
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.waiting.refusals import with_jitter

# What is held comes free when requests end.
BUSY_RETRY_MS: Final = 1_000
_PICOUSD_PER_MICROUSD: Final = 10**6


class Budgets:
    """The budgets of this process's requests, as Redis has them."""

    def __init__(self, redis: RedisPipe) -> None:
        self._redis = redis

    async def hold(self, exchange: Exchange, prompt_tokens: int, output_tokens: int) -> None:
        """Hold the cost of so many tokens. Raises BudgetUsedUp; QuotaExceeded while other requests hold what
        is left; DependencyUnavailable if Redis does not know, unless the tenant has a local lease.
        """
        caller = exchange.request.caller
        covering = {
            each.budget: each
            for each in caller.tenant.budgets
            if each.project in {None, caller.key.project} and each.key_id in {None, caller.key.key_id}
        }
        price = exchange.request.model.price_at(exchange.head.started_ms)
        # What costs nothing, a budget of money does not stop.
        micro_usd = 0 if price is None else _micro_usd(price.most(prompt_tokens, output_tokens))
        if not covering or not micro_usd:
            return
        call = budget_hold_call(
            caller.tenant.tenant,
            exchange.request_id,
            micro_usd=micro_usd,
            budgets=list(covering),
            cell=exchange.head.cell,
        )
        try:
            reply = parse_budget_hold(await self._redis.execute(*call))
        except RedisUnavailable as exc:
            if caller.tenant.outage.requests:
                return
            raise DependencyUnavailable from exc
        if isinstance(reply, BudgetUnknown):
            raise DependencyUnavailable
        if isinstance(reply, BudgetFull) and reply.busy:
            raise QuotaExceeded(
                "budget", "Requests in flight hold what is left of the budget.", with_jitter(BUSY_RETRY_MS)
            )
        if isinstance(reply, BudgetFull):
            raise BudgetUsedUp(_called(covering[reply.budget]), reply.until_ms)

    def settled(self, exchange: Exchange, billed: Iterable[Tokens]) -> None:
        """Hold what the parts of the request did cost; `exchange` is its first."""
        price = exchange.request.model.price_at(exchange.head.started_ms)
        if price is not None and exchange.request.caller.tenant.budgets:
            self._change(exchange, _micro_usd(sum(price.amount(tokens) for tokens in billed)))

    def release(self, exchange: Exchange) -> None:
        """Hold nothing more: the request was not admitted."""
        self._change(exchange, 0)

    def _change(self, exchange: Exchange, micro_usd: int) -> None:
        tenant = exchange.request.caller.tenant
        if tenant.budgets:
            self._redis.send(*budget_hold_call(tenant.tenant, exchange.request_id, micro_usd=micro_usd))


def _called(budget: BudgetOf) -> str:
    """What its caller calls it."""
    if budget.per == "prepaid":
        return "What prepaid credits can pay"
    owner = "API key" if budget.key_id else "project" if budget.project else "account"
    period = {"day": "daily ", "month": "monthly "}.get(budget.per or "", "")
    return f"The {period}budget of this {owner}"


def _micro_usd(picousd: int) -> int:
    """Rounded up."""
    return -(-picousd // _PICOUSD_PER_MICROUSD)
