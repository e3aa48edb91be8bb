"""Alerts of budgets in SQL: who is told when so much of a budget is spent, and whether that was done. It
sends nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import budgets
from billing.catalogue.budgets import Budget
from billing.refusals import NotFound
from billing.schema.budgets import budget, budget_spent
from billing.schema.budgets import budget_alert as table
from billing.wire.webhooks import new_secret

_AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert: at `percent` of a budget, to `url`. `failure`: why the last attempt failed, until one has
    succeeded.
    """

    budget_id: str
    percent: int
    url: str
    secret: str
    attempts: int
    failure: str | None


def put(connection: Connection, budget_id: str, percent: int, url: str) -> Alert:
    """Set where it goes, with a new secret, as one that was not sent yet. Raises NotFound for a budget that
    there is not.
    """
    budgets.find(connection, budget_id)
    secret = new_secret()
    again = {
        "url": url, "secret": secret, "sent_from_ms": None, "attempts": 0, "next_ms": None, "failure": None,
    }  # fmt: skip
    row = connection.execute(
        insert(table)
        .values(budget_id=budget_id, percent=percent, url=url, secret=secret)
        .on_conflict_do_update(index_elements=["budget_id", "percent"], set_=again)
        .returning(table)
    ).one()
    return _alert(row)


def remove(connection: Connection, budget_id: str, percent: int) -> Alert:
    """Remove it. Raises NotFound."""
    row = connection.execute(
        delete(table).where(table.c.budget_id == budget_id, table.c.percent == percent).returning(table)
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no alert at {percent} % of {budget_id!r}.", param="percent")
    return _alert(row)


def of_budgets(connection: Connection, budget_ids: Collection[str]) -> dict[str, list[Alert]]:
    """The alerts of these budgets, the lowest first."""
    found: dict[str, list[Alert]] = {}
    query = select(table).where(table.c.budget_id.in_(set(budget_ids))).order_by(table.c.percent)
    for row in connection.execute(query):
        found.setdefault(row.budget_id, []).append(_alert(row))
    return found


def due(connection: Connection, now_ms: int) -> Sequence[tuple[Alert, Budget]]:
    """Some of the alerts that are to be sent now, with their budgets."""
    query = (
        select(table)
        .join(budget, budget.c.budget_id == table.c.budget_id)
        .join(
            budget_spent,
            and_(budget_spent.c.budget_id == table.c.budget_id, budget_spent.c.from_ms == budget.c.from_ms),
        )
        .where(
            budget_spent.c.amount_picousd * 100 >= budgets.LIMIT_PICOUSD * table.c.percent,
            budget_spent.c.amount_picousd > 0,
            table.c.sent_from_ms.is_distinct_from(budget.c.from_ms),
            or_(table.c.next_ms.is_(None), table.c.next_ms <= now_ms),
        )
        .order_by(table.c.next_ms.nulls_first(), table.c.budget_id)
        .limit(_AT_ONCE)
    )
    alerts = [_alert(row) for row in connection.execute(query)]
    found = budgets.some(connection, [alert.budget_id for alert in alerts])
    return [(alert, found[alert.budget_id]) for alert in alerts if alert.budget_id in found]


def sent(connection: Connection, alert: Alert, from_ms: int) -> None:
    """It was sent for the period that began then."""
    # Whoever sets the budget meanwhile sees that it was sent, or is seen.
    connection.execute(
        select(budget.c.budget_id).where(budget.c.budget_id == alert.budget_id).with_for_update()
    )
    _set(connection, alert, sent_from_ms=from_ms, attempts=0, next_ms=None, failure=None)
    budgets.rearm_alerts(connection, alert.budget_id)


def failed(connection: Connection, alert: Alert, failure: str, next_ms: int) -> None:
    """It could not be sent; try again then."""
    _set(connection, alert, attempts=alert.attempts + 1, next_ms=next_ms, failure=failure)


def _set(connection: Connection, alert: Alert, **values: Any) -> None:
    # One that was set anew meanwhile has another secret.
    one = and_(
        table.c.budget_id == alert.budget_id,
        table.c.percent == alert.percent,
        table.c.secret == alert.secret,
    )
    connection.execute(update(table).where(one).values(**values))


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        budget_id=row.budget_id,
        percent=row.percent,
        url=row.url,
        secret=row.secret,
        attempts=row.attempts,
        failure=row.failure,
    )
