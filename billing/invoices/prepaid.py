"""Prepaid tenants: what a tenant's credits can pay, kept as a budget, so that its requests are refused when
they are used up.

The budget's amount is what invoices have left of the credits, less tax, and less what the next invoices will
charge beside usage; what is spent of it is what is on no invoice yet. It is worked out anew when a credit is
granted or expires, when a contract or its price changes, and when a period ends or its invoice is issued.
"""

from typing import Final

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import budgets, outbox, tenants
from billing.catalogue.budget_periods import Per
from billing.catalogue.money import ZERO, Money
from billing.catalogue.names import BUDGET_PREFIX, new_id
from billing.catalogue.outbox import ChangeKind
from billing.catalogue.tenants import Tenant
from billing.invoices import credits, store
from billing.invoices.lines import capacity_amount, to_cents
from billing.invoices.next_period import begun_period, span_of
from billing.invoices.periods import next_name
from billing.invoices.reading import owed_for_usage
from billing.invoices.terms import capacity_charges, terms_at
from billing.ledger.budget_spent import recount
from billing.schema.budgets import budget
from billing.schema.clock import NOW_MS
from billing.schema.invoices import invoiced

_OF: Final = budget.c.per == Per.PREPAID.value


def set_prepaid(connection: Connection, tenant_id: str, on: bool, now_ms: int) -> None:
    """Let a tenant use no more than its credits can pay, or no longer so."""
    if on:
        statement = insert(budget).values(
            budget_id=new_id(BUDGET_PREFIX), tenant_id=tenant_id, per=Per.PREPAID.value, amount_picousd=0,
            from_ms=0,
        )  # fmt: skip
        connection.execute(statement.on_conflict_do_nothing())
        renew(connection, tenant_id, now_ms)
    else:
        connection.execute(delete(budget).where(_OF, budget.c.tenant_id == tenant_id))
        outbox.record(connection, ChangeKind.TENANT, tenant_id)


def renew(connection: Connection, tenant_id: str, now_ms: int) -> None:
    """Work out anew what the credits of a prepaid tenant can pay; nothing for any other."""
    budget_id = connection.execute(
        select(budget.c.budget_id).where(_OF, budget.c.tenant_id == tenant_id)
    ).scalar_one_or_none()
    if budget_id is None:
        return
    every = credits.of_tenant(connection, tenant_id)
    held = [each for each in every if each.left(now_ms).picousd]
    tax = terms_at(connection, tenant_id, now_ms).tax_basis_points
    since = (
        connection.execute(
            select(invoiced.c.until_ms).where(invoiced.c.tenant_id == tenant_id)
        ).scalar_one_or_none()
        or 0
    )

    def used_before(moment_ms: int) -> Money:
        return owed_for_usage(connection, tenant_id, since, moment_ms, tax)

    # What was used before a credit expired it still pays for.
    paid = credits.choose(every, used_before(now_ms), since, now_ms + 1, used_before)
    gone = {each.credit for each in every} - {each.credit for each in held}
    can_pay = sum(each.rest.picousd for each in held)
    can_pay += sum(amount.picousd for credit, amount in paid if credit in gone)
    beside, ends_ms = _beside_usage(connection, tenants.find(connection, tenant_id), since, now_ms)
    values = {
        "amount_picousd": max(0, can_pay * 10_000 // (10_000 + tax) - beside.picousd),
        "from_ms": since,
        "until_ms": min([ends_ms, *(each.expires_ms for each in held if each.expires_ms is not None)]),
    }
    connection.execute(budget.update().where(budget.c.budget_id == budget_id).values(values))
    outbox.record(connection, ChangeKind.TENANT, tenant_id)
    recount(connection, [budgets.find(connection, budget_id)])
    budgets.rearm_alerts(connection, budget_id)


def _beside_usage(connection: Connection, tenant: Tenant, since_ms: int, now_ms: int) -> tuple[Money, int]:
    """What invoices will charge beside usage, of all that is on none until the period of now ends; and when
    that is. Capacity is charged whether used or not. Of a commitment what is left when its period is over is
    charged; while it lasts usage draws on it.
    """
    last = store.last_of(connection, tenant.tenant_id)
    after_ms = None if last is None else last.until_ms
    name, unused = begun_period(connection, tenant, now_ms), ZERO
    while True:
        span = span_of(connection, tenant, name, after_ms)
        if span.until_ms > now_ms:
            beside = _capacity(connection, tenant.tenant_id, since_ms, span.until_ms)
            return unused + beside, span.until_ms
        spent = owed_for_usage(connection, tenant.tenant_id, span.from_ms, span.until_ms, 0)
        spent += _capacity(connection, tenant.tenant_id, span.from_ms, span.until_ms)
        unused += max(ZERO, span.terms.commitment - spent)
        after_ms, name = span.until_ms, next_name(name)


def _capacity(connection: Connection, tenant_id: str, from_ms: int, until_ms: int) -> Money:
    pieces = capacity_charges(connection, from_ms, until_ms, tenant_id)
    return sum((to_cents(capacity_amount(piece)) for piece, _ in pieces), ZERO)


def renew_expired(connection: Connection, now_ms: int) -> None:
    """The same of all prepaid tenants of whom a credit has expired, or whose period is over."""
    due = select(budget.c.tenant_id).where(_OF, budget.c.until_ms <= NOW_MS)
    for tenant_id in connection.execute(due).scalars().all():
        renew(connection, tenant_id, now_ms)
