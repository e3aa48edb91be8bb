"""Budgets in SQL: what a tenant, one of its projects or one of its keys may spend in a period. It knows
neither HTTP nor Redis, and it does not add up what was spent (`billing.ledger.budget_spent`).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import limits, outbox, projects, tenants
from billing.catalogue.budget_periods import Per, Window, period_of
from billing.catalogue.money import Money
from billing.catalogue.names import BUDGET_PREFIX, new_id
from billing.catalogue.outbox import ChangeKind
from billing.moments import DAY_MS
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Invalid, NotFound
from billing.schema.budgets import budget as table
from billing.schema.budgets import budget_alert, budget_spent
from billing.schema.catalogue import api_key, tenant
from billing.schema.clock import NOW_MS

LIMIT_PICOUSD: Final = table.c.amount_picousd + func.coalesce(table.c.raised_picousd, 0)
_COUNTED: Final = and_(
    budget_spent.c.budget_id == table.c.budget_id, budget_spent.c.from_ms == table.c.from_ms
)
# What is so far ahead is not worth saying.
_FORESEEN_MS: Final = 36_525 * DAY_MS
# Many periods end at the same midnight.
_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One budget in its current period, [from, until). `limit`: its amount, and what it is raised by now.
    `first_ms`: since when something of it is spent, if anything is. `rotated`: the keys that came of `key_id`
    by rotation, whose requests count too.
    """

    budget_id: str
    tenant_id: str
    project_id: str | None
    key_id: str | None
    per: Per
    amount: Money
    raised: Money | None
    raised_until_ms: int | None
    from_ms: int
    until_ms: int | None
    zone: str
    spent: Money
    first_ms: int | None = None
    window: Window | None = None
    rotated: tuple[str, ...] = ()

    def period_at(self, moment_ms: int) -> int:
        """When the period begins to which what ended then counts."""
        if self.per is Per.PREPAID:
            return self.from_ms
        return period_of(self.per, moment_ms, self.zone, self.window)[0]

    @property
    def limit(self) -> Money:
        return self.amount if self.raised is None else self.amount + self.raised

    def runs_out_ms(self, now_ms: int) -> int | None:
        """When it is used up if spending goes on as in its period so far, since it began to be spent; None if
        that is after the period, or cannot be said. `total` and `prepaid` end no period.
        """
        left = max(0, self.limit.picousd - self.spent.picousd)
        if not left:
            return now_ms
        since_ms = max(self.from_ms, now_ms if self.first_ms is None else self.first_ms)
        if since_ms >= now_ms or self.spent.picousd <= 0:
            return None
        moment_ms = now_ms + left * (now_ms - since_ms) // self.spent.picousd
        ends_ms = None if self.per is Per.PREPAID else self.until_ms
        return moment_ms if moment_ms < (now_ms + _FORESEEN_MS if ends_ms is None else ends_ms) else None

    def covers(self, project_id: str, key_id: str) -> bool:
        """Whether a request of this project and key of its tenant counts."""
        return self.project_id in {None, project_id} and (
            self.key_id in {None, key_id} or key_id in self.rotated
        )


@dataclass(frozen=True, slots=True)
class Whose:
    """The owner of a budget: a tenant, one of its projects, or one of its keys."""

    tenant_id: str
    project_id: str | None
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Raise:
    """So much more, until then."""

    by: Money
    until_ms: int


_BY_TENANT: Final[Order[Budget]] = Order(
    "budgets",
    lambda budget: (budget.tenant_id, budget.budget_id),
    (str, str),
    (table.c.tenant_id, table.c.budget_id),
)


def find_whose(
    connection: Connection,
    tenant: str | None,
    project: str | None,
    key_id: str | None,
    *,
    only: str | None = None,
) -> Whose:
    """The owner by name; with `only`, within this tenant. Of a key that came of another by rotation it is
    that one. Raises NotFound; Invalid if nobody is named, or if a project and a key are.
    """
    if project is not None and key_id is not None:
        raise Invalid("A budget is a project's or a key's, not both.", param="key_id")
    if key_id is not None:
        tenant_id = limits.find_subject(connection, tenant, key_id, only=only).tenant_id
        return Whose(tenant_id, None, connection.execute(_first_key(key_id)).scalar_one())
    if tenant is None:
        raise Invalid("Name the tenant or the key whose budget it is.", param="tenant")
    tenant_id = tenants.find(connection, tenant, only=only).tenant_id
    project_id = None if project is None else projects.find(connection, tenant_id, project).project_id
    return Whose(tenant_id, project_id, None)


def put(
    connection: Connection,
    whose: Whose,
    per: Per,
    amount: Money,
    more: Raise | None,
    now_ms: int,
    *,
    window: Window | None = None,
) -> Budget:
    """Set a budget: its amount, and how much more holds for a while. What was spent in the period stays.
    `window` goes with a `window`.
    """
    zone = connection.execute(
        select(tenant.c.time_zone).where(tenant.c.tenant_id == whose.tenant_id)
    ).scalar_one()
    from_ms, until_ms = period_of(per, now_ms, zone, window)
    values = {
        "window_days": None if window is None else window.days,
        "window_starts": None if window is None else window.starts.isoformat(),
        "amount_picousd": amount.picousd,
        "raised_picousd": None if more is None else more.by.picousd,
        "raised_until_ms": None if more is None else more.until_ms,
        "from_ms": from_ms,
        "until_ms": until_ms,
    }
    budget_id = connection.execute(
        insert(table)
        .values(
            budget_id=new_id(BUDGET_PREFIX),
            tenant_id=whose.tenant_id,
            project_id=whose.project_id,
            key_id=whose.key_id,
            per=per.value,
            **values,
        )
        .on_conflict_do_update(index_elements=["tenant_id", "project_id", "key_id", "per"], set_=values)
        .returning(table.c.budget_id)
    ).scalar_one()
    rearm_alerts(connection, budget_id)
    outbox.record(connection, ChangeKind.TENANT, whose.tenant_id)
    return find(connection, budget_id)


def rearm_alerts(connection: Connection, budget_id: str) -> None:
    """Alerts that were sent in this period are to be sent again, where less is spent by now than they are at:
    the budget was set higher, raised, or paid for.
    """
    unreached = and_(
        budget_alert.c.budget_id == table.c.budget_id,
        budget_alert.c.sent_from_ms == table.c.from_ms,
        func.coalesce(budget_spent.c.amount_picousd, 0) * 100 < LIMIT_PICOUSD * budget_alert.c.percent,
    )
    spent = table.outerjoin(budget_spent, _COUNTED)
    again = (
        select(budget_alert.c.percent)
        .select_from(spent.join(budget_alert, unreached))
        .where(table.c.budget_id == budget_id)
    )
    connection.execute(
        update(budget_alert)
        .where(budget_alert.c.budget_id == budget_id, budget_alert.c.percent.in_(again))
        .values(sent_from_ms=None)
    )


def remove(connection: Connection, budget_id: str) -> Budget:
    """Remove a budget, and what it counted. Raises NotFound."""
    found = find(connection, budget_id)
    connection.execute(delete(table).where(table.c.budget_id == budget_id))
    outbox.record(connection, ChangeKind.TENANT, found.tenant_id)
    return found


def find(connection: Connection, budget_id: str, *, tenant_id: str | None = None) -> Budget:
    """By id; with a tenant, only one of that tenant. Raises NotFound."""
    row = connection.execute(_select().where(table.c.budget_id == budget_id)).one_or_none()
    if row is None or tenant_id not in {None, row.tenant_id}:
        raise NotFound(
            f"There is no budget {budget_id!r}; `taas budget list` shows those that are.", param="budget_id"
        )
    return _budget(row)


def list_page(
    connection: Connection,
    asked: PageRequest,
    tenant_id: str | None = None,
    *,
    key_id: str | None = None,
    per: Per | None = None,
) -> Page[Budget]:
    """All budgets; those of a tenant, its projects and its keys; of one key, or of that of which it came by
    rotation; for such a period.
    """
    query = _select()
    if key_id is not None:
        query = query.where(table.c.key_id == _first_key(key_id).scalar_subquery())
    if per is not None:
        query = query.where(table.c.per == per.value)
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    return read_page(connection, query, _BY_TENANT, _budget, asked)


def of_tenants(connection: Connection, tenant_ids: Collection[str] | None) -> dict[str, list[Budget]]:
    """The budgets of these tenants, or of all, by tenant. Tenants without one are left out."""
    query = _select().order_by(table.c.budget_id)
    if tenant_ids is not None:
        query = query.where(table.c.tenant_id.in_(set(tenant_ids)))
    found: dict[str, list[Budget]] = {}
    for row in connection.execute(query):
        found.setdefault(row.tenant_id, []).append(_budget(row))
    return found


def select_any_due() -> Select[bool]:
    """A query for whether a period or a raise has ended."""
    return select(exists(select(table.c.budget_id).where(_due())))


def begin_periods(connection: Connection, now_ms: int) -> None:
    """Begin the next period of budgets whose period has ended, and end raises whose time is over. Of some of
    them: the others are due at the next call.
    """
    some = (
        _select()
        .where(_due(), table.c.per != Per.PREPAID.value)
        .order_by(table.c.budget_id)
        .limit(_AT_ONCE)
        .with_for_update(of=table)
    )
    for row in connection.execute(some).all():
        _restart(connection, _budget(row), now_ms)


def move_to_zone(connection: Connection, tenant_id: str, now_ms: int) -> list[Budget]:
    """Give the budgets of a tenant whose time zone has changed its periods. Returns them."""
    found = [
        each for each in of_tenants(connection, [tenant_id]).get(tenant_id, []) if each.per is not Per.PREPAID
    ]
    for each in found:
        _restart(connection, each, now_ms)
    return [find(connection, each.budget_id) for each in found]


def _restart(connection: Connection, each: Budget, now_ms: int) -> None:
    from_ms, until_ms = period_of(each.per, now_ms, each.zone, each.window)
    values: dict[str, Any] = {"from_ms": from_ms, "until_ms": until_ms}
    if each.raised_until_ms is not None and each.raised_until_ms <= now_ms:
        values |= {"raised_picousd": None, "raised_until_ms": None}
    connection.execute(update(table).where(table.c.budget_id == each.budget_id).values(values))
    outbox.record(connection, ChangeKind.TENANT, each.tenant_id)


def _due() -> Any:
    return or_(table.c.until_ms <= NOW_MS, table.c.raised_until_ms <= NOW_MS)


def _first_key(key_id: str) -> Select[str]:
    return select(func.coalesce(api_key.c.first_key_id, api_key.c.key_id)).where(api_key.c.key_id == key_id)


def _select() -> Select[Any]:
    rotated = select(func.array_agg(api_key.c.key_id)).where(api_key.c.first_key_id == table.c.key_id)
    return (
        select(
            table,
            tenant.c.time_zone,
            func.coalesce(budget_spent.c.amount_picousd, 0).label("spent"),
            budget_spent.c.first_ms,
            rotated.scalar_subquery().label("rotated"),
        )
        .join(tenant, tenant.c.tenant_id == table.c.tenant_id)
        .outerjoin(budget_spent, _COUNTED)
    )


def _budget(row: Row[Any]) -> Budget:
    return Budget(
        budget_id=row.budget_id,
        tenant_id=row.tenant_id,
        project_id=row.project_id,
        key_id=row.key_id,
        per=Per(row.per),
        amount=Money.from_sql(row.amount_picousd),
        raised=None if row.raised_picousd is None else Money.from_sql(row.raised_picousd),
        raised_until_ms=row.raised_until_ms,
        from_ms=row.from_ms,
        until_ms=row.until_ms,
        zone=row.time_zone,
        window=None
        if row.window_days is None
        else Window(row.window_days, date.fromisoformat(row.window_starts)),
        spent=Money.from_sql(row.spent),
        first_ms=row.first_ms,
        rotated=tuple(row.rotated or ()),
    )


def some(connection: Connection, budget_ids: Collection[str]) -> dict[str, Budget]:
    """These budgets, by id."""
    rows = connection.execute(_select().where(table.c.budget_id.in_(set(budget_ids))))
    return {row.budget_id: _budget(row) for row in rows}


def project_names(connection: Connection, budgets: Iterable[Budget]) -> dict[str, str]:
    """The names of the projects whose budgets these are, by id."""
    return projects.names(connection, [each.project_id for each in budgets if each.project_id is not None])
