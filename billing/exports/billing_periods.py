"""A tenant's billing periods, closed and open, and what was used and reserved in them by day, read from the
ledger. It writes nothing and knows no form of export.

A day is one of UTC, cut by its period. The usage of a closed period is that of its invoice: what came later
is taken out again, and is in the period on whose invoice it is, with its own day.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Select, and_, func, literal, literal_column, select

from billing.catalogue.tenants import Tenant
from billing.invoices import store
from billing.invoices.close import terms_of
from billing.invoices.lines import Reserved, Terms
from billing.invoices.next_period import next_period
from billing.invoices.periods import days, name_before, next_name, period
from billing.invoices.store import Stored
from billing.invoices.terms import terms_at
from billing.ledger.dropped import refuse_dropped_late
from billing.ledger.entries import Pricing
from billing.ledger.usage_report import CLASS, tokens_by_kind, usage_between
from billing.moments import DAY_MS, HOUR_MS
from billing.schema.capacity import contract_minute
from billing.schema.invoices import invoice, late_transaction
from billing.schema.ledger import ledger_transaction, usage_event, usage_hour

_of = usage_event.c
_DAY: Final = literal_column(str(DAY_MS), BigInteger)
_FIRST: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingPeriod:
    """[from, until). `invoice`: None while it is open. What is on its invoice was recorded after the
    transaction `after`; None: late usage is not on it, since it is not the one that is closed next.
    """

    name: str
    from_ms: int
    until_ms: int
    terms: Terms
    invoice: Stored | None
    after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedInDay:
    """Tokens by kind at one price that were used in one day: [from, until). `period`: of the invoice on which
    they should have been, or are.
    """

    period: str
    from_ms: int
    until_ms: int
    project: str
    model: str
    class_: str
    contract: str | None
    price_id: int
    tokens: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """What a contract was used for in one day by a project and model, in milliunits."""

    contract: str
    day: int
    project: str
    model: str
    mu: int


def periods_between(
    connection: Connection, tenant: Tenant, from_ms: int, until_ms: int, now_ms: int
) -> list[BillingPeriod]:
    """All that overlap [from, until) and have begun, the first first."""
    found: list[BillingPeriod] = []
    upto = _FIRST
    closed = select(invoice.c.number).where(
        invoice.c.kind == "invoice", invoice.c.tenant_id == tenant.tenant_id
    )
    for number in connection.execute(closed.order_by(invoice.c.from_ms)).scalars().all():
        each = store.find(connection, number)
        found.append(
            BillingPeriod(
                name=each.period, from_ms=each.from_ms, until_ms=each.until_ms, terms=terms_of(each.facts),
                invoice=each, after=upto,
            )
        )  # fmt: skip
        upto = each.ledger_upto
    found += _open(connection, tenant, found[-1].until_ms if found else None, upto, min(until_ms, now_ms))
    return [each for each in found if each.from_ms < until_ms and each.until_ms > from_ms]


def _open(
    connection: Connection, tenant: Tenant, from_ms: int | None, upto: int, until_ms: int
) -> Iterator[BillingPeriod]:
    """Those after the last invoice, as they would be closed."""
    name = next_period(connection, tenant)
    after: int | None = upto
    while name is not None:
        if from_ms is None:
            starts_ms, _ = period(name, 1, tenant.time_zone)
            day = terms_at(connection, tenant.tenant_id, starts_ms).day
            from_ms, _ = period(name, day, tenant.time_zone)
        if from_ms >= until_ms:
            return
        terms = terms_at(connection, tenant.tenant_id, from_ms)
        begins_ms, ends_ms = period(name, terms.day, tenant.time_zone)
        terms = terms.for_days(days(from_ms, ends_ms), days(begins_ms, ends_ms))
        if ends_ms > from_ms:
            yield BillingPeriod(
                name=name, from_ms=from_ms, until_ms=ends_ms, terms=terms, invoice=None, after=after
            )
            from_ms, after = ends_ms, None
        name = next_name(name)


def earlier_names(connection: Connection, tenant_id: str) -> list[str]:
    """The names of the periods that have an invoice, the first first."""
    query = select(invoice.c.period).where(invoice.c.kind == "invoice", invoice.c.tenant_id == tenant_id)
    return list(connection.execute(query.order_by(invoice.c.from_ms)).scalars())


def credit_notes_of(connection: Connection, tenant_id: str, from_ms: int, until_ms: int) -> list[Stored]:
    """Those that were issued in [from, until), in the order of their numbers."""
    query = select(invoice.c.number).where(
        invoice.c.kind == "credit_note",
        invoice.c.tenant_id == tenant_id,
        invoice.c.issued_ms >= from_ms,
        invoice.c.issued_ms < until_ms,
    )
    numbers = connection.execute(query.order_by(invoice.c.number)).scalars().all()
    return [store.find(connection, number) for number in numbers]


def used_by_day(connection: Connection, tenant_id: str, each: BillingPeriod) -> Iterator[UsedInDay]:
    """Priced usage of the period, and what is late on its invoice, by day. Raises Invalid if retention has
    dropped late usage of it or after it.
    """
    refuse_dropped_late(connection, tenant_id, each.after or 0)
    upto = None if each.invoice is None else each.invoice.ledger_upto
    if each.after is not None:
        yield from _late(connection, tenant_id, each.after, upto, each)
    # What has come since the period was closed is on a later invoice.
    since: dict[tuple[Any, ...], tuple[int, ...]] = {}
    if upto is not None:
        within = _of.ended_ms >= each.from_ms, _of.ended_ms < each.until_ms
        query = _late_query(tenant_id, upto, None, each.name).where(*within)
        since = {tuple(row[1:7]): tuple(map(int, row[7:])) for row in connection.execute(query)}
    usage = usage_between(tenant_id, each.from_ms, each.until_ms).c
    day = usage.hour.op("/")(literal_column(str(DAY_MS // HOUR_MS)))
    group = day, usage.project, usage.model, usage["class"], usage.contract, usage.price_id
    query = (
        select(literal(each.name), *group, *tokens_by_kind(usage, "billed"))
        .where(usage.pricing == Pricing.PRICED.value)
        .group_by(*group)
        .order_by(*group)
    )
    for row in connection.execute(query.execution_options(yield_per=1000)):
        later = since.get(tuple(row[1:7]), (0, 0, 0, 0))
        left = [int(tokens) - less for tokens, less in zip(row[7:], later, strict=True)]
        if any(left):
            yield _used(each, (*row[:7], *left))


def _late(
    connection: Connection, tenant_id: str, after: int, upto: int | None, each: BillingPeriod
) -> Iterator[UsedInDay]:
    names = earlier_names(connection, tenant_id)
    if not names:
        return
    for row in connection.execute(_late_query(tenant_id, after, upto, name_before(names[0]))):
        yield _used(None, (*row[:7], *map(int, row[7:])))


def _late_query(tenant_id: str, after: int, upto: int | None, before: str) -> Select[Any]:
    """What was recorded, after a transaction and up to one, of moments that were on an invoice by then.
    `before`: the period before the first invoice; what is older has its own month in UTC.
    """
    of_then = and_(
        invoice.c.kind == "invoice",
        invoice.c.tenant_id == tenant_id,
        invoice.c.from_ms <= _of.ended_ms,
        invoice.c.until_ms > _of.ended_ms,
    )
    month = func.to_char(
        func.timezone("UTC", func.to_timestamp(_of.ended_ms.op("/")(literal_column("1000")))), "YYYY-MM"
    )
    contract = func.coalesce(_of.contract, literal_column("''"))
    group = (
        func.coalesce(invoice.c.period, func.least(month, literal(before))),
        _of.ended_ms.op("/")(_DAY), _of.project, _of.model, CLASS,
        contract, ledger_transaction.c.price_id,
    )  # fmt: skip
    query = (
        select(*group, *tokens_by_kind(_of, "billed"))
        .select_from(
            usage_event.join(
                ledger_transaction,
                and_(ledger_transaction.c.request_id == _of.request_id, ledger_transaction.c.day == _of.day),
            )
        )
        .join(
            late_transaction,
            and_(
                late_transaction.c.transaction_id == ledger_transaction.c.transaction_id,
                late_transaction.c.tenant_id == tenant_id,
            ),
        )
        .outerjoin(invoice, of_then)
        .where(
            _of.kind == "request",
            ledger_transaction.c.pricing == Pricing.PRICED.value,
            late_transaction.c.transaction_id > after,
        )
        .group_by(*group)
        .order_by(*group)
    )
    return query if upto is None else query.where(late_transaction.c.transaction_id <= upto)


def _used(within: BillingPeriod | None, row: tuple[Any, ...]) -> UsedInDay:
    from_ms, until_ms = row[1] * DAY_MS, (row[1] + 1) * DAY_MS
    if within is not None:
        from_ms, until_ms = max(from_ms, within.from_ms), min(until_ms, within.until_ms)
    return UsedInDay(
        period=row[0], from_ms=from_ms, until_ms=until_ms, project=row[2], model=row[3], class_=row[4],
        contract=row[5] or None, price_id=row[6], tokens=(row[7], row[8], row[9], row[10]),
    )  # fmt: skip


def days_of(piece: Reserved) -> Iterator[tuple[int, int]]:
    """[from, until) of each day that it touches, cut by it."""
    for day in range(piece.from_ms // DAY_MS, -(-piece.until_ms // DAY_MS)):
        yield max(day * DAY_MS, piece.from_ms), min((day + 1) * DAY_MS, piece.until_ms)


def used_mu_by_day(connection: Connection, piece: Reserved) -> dict[int, int]:
    """What a contract's evidence says that it used of a piece of its capacity, by day, in milliunits."""
    of = contract_minute.c
    day = of.minute_ms.op("/")(_DAY)
    query = (
        select(day, func.sum(of.used_mu))
        .where(of.contract_id == piece.contract, of.minute_ms >= piece.from_ms, of.minute_ms < piece.until_ms)
        .group_by(day)
    )
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def work_of_contracts(
    connection: Connection, tenant_id: str, from_ms: int, until_ms: int
) -> dict[tuple[str, int], list[Work]]:
    """Whose work it was, by contract and day: of requests that ended in these hours."""
    of = usage_hour.c
    day = of.hour.op("/")(literal_column(str(DAY_MS // HOUR_MS)))
    group = of.contract, day, of.project, of.model
    query = (
        select(*group, func.sum(of.units_mu))
        .where(
            of.tenant == tenant_id,
            of.contract != "",
            of.hour >= from_ms // HOUR_MS,
            of.hour < -(-until_ms // HOUR_MS),
        )
        .group_by(*group)
        .order_by(*group)
    )
    found: defaultdict[tuple[str, int], list[Work]] = defaultdict(list)
    for row in connection.execute(query):
        if row[4]:
            found[row[0], row[1]].append(Work(row[0], row[1], row[2], row[3], int(row[4])))
    return found
