"""What was spent of budgets: the sums of the ledger's amounts, kept in the same SQL transactions, so that
nobody has to add up a month of requests.

A request belongs to the period in which it ended, as in usage reports.
"""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Budget, of_tenants
from billing.catalogue.price_book import hold_prices
from billing.ledger.entries import RecordedEvent
from billing.ledger.usage_report import usage_between
from billing.schema.budgets import budget_spent

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
    sums: dict[tuple[str, int], int] = {}
    for item in recorded:
        event = item.event
        for budget in by_tenant.get(event.tenant, ()):
            if item.amount.picousd and budget.covers(event.project, event.key_id):
                period = budget.budget_id, budget.period_at(event.ended_ms)
                sums[period] = sums.get(period, 0) + item.amount.picousd
    if sums:
        # The same order everywhere, so that two consumers cannot deadlock.
        statement = insert(budget_spent).values(
            [
                {"budget_id": budget_id, "from_ms": from_ms, "amount_picousd": amount}
                for (budget_id, from_ms), amount in sorted(sums.items())
            ]
        )
        added = budget_spent.c.amount_picousd + statement.excluded.amount_picousd
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["budget_id", "from_ms"], set_={"amount_picousd": added}
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
        if budget.project_id is not None:
            query = query.where(usage.project == budget.project_id)
        if budget.key_id is not None:
            query = query.where(usage.key_id == budget.key_id)
        amount = connection.execute(query).scalar_one()
        if budget.per is Per.PREPAID:
            amount += connection.execute(_LATE, {"tenant": budget.tenant_id}).scalar_one()
        statement = insert(budget_spent).values(
            budget_id=budget.budget_id, from_ms=budget.from_ms, amount_picousd=amount
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["budget_id", "from_ms"], set_={"amount_picousd": amount}
            )
        )
