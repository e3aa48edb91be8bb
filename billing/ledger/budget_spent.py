"""What was spent of budgets: the sums of the ledger's amounts, kept in the same SQL transactions, so that
nobody has to add up a month of requests.

A request belongs to the period in which it ended, as in usage reports.
"""

from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

from sqlalchemy import Connection, case, func, select, text
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Budget, of_tenants
from billing.catalogue.price_book import hold_prices
from billing.ledger.entries import RecordedEvent
from billing.ledger.usage_report import usage_between
from billing.moments import HOUR_MS
from billing.schema.budgets import budget_spent
from billing.schema.ledger import usage_hour

# An amount, and when the first request of it began.
_Spent: TypeAlias = tuple[int, int]
# What is on no invoice yet though its moment is: recorded after that invoice.
_LATE: Final = text("""
    select coalesce(sum(p.amount_picousd), 0)
    from late_transaction l join invoiced i on i.tenant_id = l.tenant_id
    join ledger_posting p on p.transaction_id = l.transaction_id and p.account = 'receivable'
    where l.tenant_id = :tenant and l.transaction_id > i.ledger_upto
""")


def add_spent(
    connection: Connection, tenant_ids: Collection[str], recorded: Sequence[RecordedEvent]
) -> frozenset[str]:
    """Add new requests to the budgets that cover them. Returns those of these tenants that have budgets."""
    by_tenant = of_tenants(connection, tenant_ids)
    sums: dict[tuple[str, int], _Spent] = {}
    for item in recorded:
        event = item.event
        for budget in by_tenant.get(event.tenant, ()):
            if item.amount.picousd and budget.covers(event.project, event.key_id):
                period = budget.budget_id, budget.period_at(event.ended_ms)
                amount, first_ms = sums.get(period, (0, event.started_ms))
                sums[period] = (amount + item.amount.picousd, min(first_ms, event.started_ms))
    if sums:
        # The same order everywhere, so that two consumers cannot deadlock.
        statement = insert(budget_spent).values(
            [
                {"budget_id": budget_id, "from_ms": from_ms, "amount_picousd": amount, "first_ms": first_ms}
                for (budget_id, from_ms), (amount, first_ms) in sorted(sums.items())
            ]
        )
        new, old = statement.excluded, budget_spent.c
        # Not known of what an earlier version has counted.
        earlier = (old.amount_picousd == 0) | (new.first_ms < old.first_ms)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["budget_id", "from_ms"],
                set_={
                    "amount_picousd": old.amount_picousd + new.amount_picousd,
                    "first_ms": case((earlier, new.first_ms), else_=old.first_ms),
                },
            )
        )
    return frozenset(by_tenant)


def count_if_new(connection: Connection, budgets: Sequence[Budget]) -> None:
    """Add up the current periods of those of these budgets that have not counted them yet."""
    counted = {
        (row.budget_id, row.from_ms)
        for row in connection.execute(
            select(budget_spent.c.budget_id, budget_spent.c.from_ms).where(
                budget_spent.c.budget_id.in_([each.budget_id for each in budgets])
            )
        )
    }
    recount(connection, [each for each in budgets if (each.budget_id, each.from_ms) not in counted])


def recount(connection: Connection, budgets: Sequence[Budget]) -> None:
    """Add up the current periods of these budgets anew, from all requests. Nothing is recorded until the
    caller's transaction ends.
    """
    if budgets:
        hold_prices(connection)
    for budget in budgets:
        usage = usage_between(budget.tenant_id, budget.from_ms, budget.until_ms).c
        query = select(func.coalesce(func.sum(usage.amount_picousd), 0))
        first = select(func.min(usage_hour.c.hour) * HOUR_MS).where(
            usage_hour.c.tenant == budget.tenant_id,
            usage_hour.c.hour >= budget.from_ms // HOUR_MS,
            usage_hour.c.amount_picousd > 0,
        )
        if budget.project_id is not None:
            query = query.where(usage.project == budget.project_id)
            first = first.where(usage_hour.c.project == budget.project_id)
        if budget.key_id is not None:
            keys = [budget.key_id, *budget.rotated]
            query = query.where(usage.key_id.in_(keys))
            first = first.where(usage_hour.c.key_id.in_(keys))
        first_ms = connection.execute(first).scalar_one()
        amount = connection.execute(query).scalar_one()
        if budget.per is Per.PREPAID:
            late = connection.execute(_LATE, {"tenant": budget.tenant_id}).scalar_one()
            amount += late
            first_ms = budget.from_ms if late else first_ms
        statement = insert(budget_spent).values(
            budget_id=budget.budget_id, from_ms=budget.from_ms, amount_picousd=amount, first_ms=first_ms
        )
        # What was noted when it was recorded is no whole hour.
        noted = func.coalesce(budget_spent.c.first_ms, statement.excluded.first_ms)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["budget_id", "from_ms"], set_={"amount_picousd": amount, "first_ms": noted}
            )
        )
