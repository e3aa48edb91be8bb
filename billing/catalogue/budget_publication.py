"""Writes budgets to Redis, where gateways ask them: limits, periods, and what was spent by the ledger.

The scripts count in whole micro-dollars. A limit is rounded down and what was spent up, so that rounding lets
nobody spend more.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import redis
from sqlalchemy import Connection

from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Budget, of_tenants
from billing.cell.asks import BudgetFigure, BudgetFigures
from billing.cell.execute import execute
from billing.cell.scripts import budget_publish_call
from billing.schema.clock import database_now_ms

PICOUSD_PER_MICROUSD: Final = 10**6


def publish(
    client: redis.Redis,
    connection: Connection,
    tenant_ids: Collection[str] | None,
    recorded: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the budgets of these tenants, or of all that have one. `recorded`: ids of requests by tenant that
    are in the ledger, and hold nothing more. Raises redis.RedisError.
    """
    now_ms = database_now_ms(connection)
    found = of_tenants(connection, tenant_ids)
    for tenant_id in sorted(found if tenant_ids is None else tenant_ids):
        figures = BudgetFigures(
            at_ms=now_ms,
            budgets=[_figure(each) for each in found.get(tenant_id, ())],
            all=True,
            recorded=list((recorded or {}).get(tenant_id, ())),
        )
        execute(client, budget_publish_call(tenant_id, figures))


def _figure(budget: Budget) -> BudgetFigure:
    return BudgetFigure(
        budget=budget.budget_id,
        limit=budget.limit.picousd // PICOUSD_PER_MICROUSD,
        spent=-(-budget.spent.picousd // PICOUSD_PER_MICROUSD),
        from_ms=budget.from_ms,
        # What credits can pay does not begin anew when one of them expires.
        until_ms=0 if budget.per is Per.PREPAID else budget.until_ms or 0,
    )
