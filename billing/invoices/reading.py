"""What invoices are made of, read from the ledger and from what was signed. It decides and writes nothing.

The usage of a period is read from sums by hour; to check an invoice, from the transactions themselves, up to
the last one that it counted. What was recorded of a moment after its invoice is late: it is on the next one.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, and_, func, literal, literal_column, select

from billing.catalogue.money import Money
from billing.catalogue.price_book import Price, prices_by_id
from billing.invoices.lines import Reserved, Short, Used, to_cents
from billing.invoices.periods import name_before
from billing.invoices.terms import capacity_charges, first_minutes
from billing.ledger.entries import Pricing
from billing.ledger.usage_report import CLASS, tokens_by_kind, usage_between
from billing.schema.capacity import contract_minute
from billing.schema.invoices import invoice, late_transaction
from billing.schema.ledger import in_days, ledger_transaction, usage_event
from billing.wire.tokens import TOKEN_KINDS

_of = usage_event.c
# In UTC, of an event.
_MONTH: Final = func.to_char(
    func.timezone("UTC", func.to_timestamp(_of.ended_ms.op("/")(literal_column("1000")))), "YYYY-MM"
)
_SAME: Final = and_(ledger_transaction.c.request_id == _of.request_id, ledger_transaction.c.day == _of.day)
_PRICED: Final = ledger_transaction.c.pricing == Pricing.PRICED.value


def used_in_period(
    connection: Connection, tenant_id: str, period: str, from_ms: int, until_ms: int
) -> list[Used]:
    """From sums by hour, as of now."""
    usage = usage_between(tenant_id, from_ms, until_ms).c
    query = _by_kind(usage, literal(period).label("period")).where(usage.pricing == Pricing.PRICED.value)
    return _read(connection, query.group_by(*_group(usage)))


def used_by_transactions(
    connection: Connection, tenant_id: str, period: str, from_ms: int, until_ms: int, upto: int
) -> list[Used]:
    """The same from the transactions up to this one."""
    query = _of_transactions(literal(period), tenant_id).where(
        ledger_transaction.c.transaction_id <= upto,
        in_days(from_ms, until_ms),
        _of.ended_ms >= from_ms,
        _of.ended_ms < until_ms,
    )
    return _read(connection, query)


def used_late(connection: Connection, tenant_id: str, after: int, upto: int) -> list[Used]:
    """What was recorded, between these transactions, of periods that were on invoices already: by period. Of
    before the first one, under its month in UTC, or the one before the first period's.
    """
    first = connection.execute(
        select(func.min(invoice.c.period)).where(
            invoice.c.kind == "invoice", invoice.c.tenant_id == tenant_id
        )
    ).scalar_one()
    if first is None:
        return []
    period = func.coalesce(invoice.c.period, func.least(_MONTH, literal(name_before(first))))
    of = late_transaction.c
    late = of.tenant_id == tenant_id, of.transaction_id > after, of.transaction_id <= upto
    same = of.transaction_id == ledger_transaction.c.transaction_id
    days = (
        connection.execute(
            select(ledger_transaction.c.day).join(late_transaction, same).where(*late).distinct()
        )
        .scalars()
        .all()
    )
    query = (
        _of_transactions(period, tenant_id)
        .join(
            late_transaction,
            same,
        )
        .outerjoin(
            invoice,
            and_(
                invoice.c.kind == "invoice",
                invoice.c.tenant_id == tenant_id,
                invoice.c.from_ms <= _of.ended_ms,
                invoice.c.until_ms > _of.ended_ms,
            ),
        )
        .where(*late, _of.day.in_(days))
        .group_by(period)
    )
    return _read(connection, query)


def not_billed(connection: Connection, tenant_id: str, from_ms: int, until_ms: int) -> dict[str, int]:
    """How many requests of the period have no amount, by why: `unpriced`, `quarantined`."""
    usage = usage_between(tenant_id, from_ms, until_ms).c
    query = select(usage.pricing, func.sum(usage.requests)).group_by(usage.pricing)
    counts = {row[0]: int(row[1]) for row in connection.execute(query)}
    return {each.value: counts.get(each.value, 0) for each in (Pricing.UNPRICED, Pricing.QUARANTINED)}


def owed_for_usage(
    connection: Connection, tenant_id: str, from_ms: int, until_ms: int, tax_basis_points: int
) -> Money:
    """What usage in [from, until) costs with its tax, to the cent."""
    usage = usage_between(tenant_id, from_ms, until_ms).c
    query = select(func.coalesce(func.sum(usage.amount_picousd), 0))
    exact = int(connection.execute(query).scalar_one())
    return to_cents(Fraction(exact * (10_000 + tax_basis_points), 10_000))


def capacity(
    connection: Connection, tenant_id: str, from_ms: int, until_ms: int
) -> tuple[list[Reserved], list[Short]]:
    """The tenant's reserved capacity, and what of it was short."""
    pieces = capacity_charges(connection, from_ms, until_ms, tenant_id)
    firsts = first_minutes(pieces)
    short = [
        Short(
            contract=piece.contract,
            from_ms=piece.from_ms,
            until_ms=piece.until_ms,
            mu=mu,
            picousd=price.picousd,
            percent=price.sla_percent,
        )
        for piece, price in pieces
        if price.sla_percent and (mu := _short_mu(connection, piece, firsts[piece.contract, piece.from_ms]))
    ]
    return [piece for piece, _ in pieces], short


def _short_mu(connection: Connection, piece: Reserved, first_ms: int) -> int:
    minute = contract_minute.c
    query = select(func.coalesce(func.sum(minute.shortfall_mu), 0)).where(
        minute.contract_id == piece.contract,
        minute.minute_ms >= first_ms,
        minute.minute_ms < piece.until_ms,
    )
    return int(connection.execute(query).scalar_one())


def _by_kind(of: Any, period: Any) -> Select[Any]:
    """Sums of tokens, each under the name of its kind."""
    return select(period, of.project, of.model, of["class"], of.contract, of.price_id, *_tokens(of))


def _tokens(of: Any) -> Iterable[Any]:
    sums = tokens_by_kind(of, "billed")
    return (figure.label(kind) for kind, figure in zip(TOKEN_KINDS, sums, strict=True))


def _group(of: Any) -> tuple[Any, ...]:
    return of.project, of.model, of["class"], of.contract, of.price_id


def _of_transactions(period: Any, tenant_id: str) -> Select[Any]:
    """As `_by_kind`, of requests of a tenant that have an amount."""
    contract = func.coalesce(_of.contract, literal_column("''")).label("contract")
    group = _of.project, _of.model, CLASS.label("class"), contract, ledger_transaction.c.price_id
    return (
        select(period.label("period"), *group, *_tokens(_of))
        .select_from(usage_event.join(ledger_transaction, _SAME))
        .where(_of.tenant == tenant_id, _of.kind == "request", _PRICED)
        .group_by(*group)
    )


def _read(connection: Connection, query: Select[Any]) -> list[Used]:
    """In one order, whatever they were read from."""
    rows = connection.execute(query).all()
    prices = prices_by_id(connection, sorted({row.price_id for row in rows}))
    found = [each for row in rows for each in _used(row, prices[row.price_id])]
    return sorted(
        found,
        key=lambda each: (
            each.period, each.project, each.model, each.class_, each.contract or "", each.price_id,
            TOKEN_KINDS.index(each.kind),
        ),
    )  # fmt: skip


def _used(row: Row[Any], price: Price) -> Iterable[Used]:
    for kind, picousd in zip(TOKEN_KINDS, price.by_kind, strict=True):
        if tokens := row._mapping[kind]:
            yield Used(
                period=row.period,
                project=row.project,
                model=row.model,
                class_=row._mapping["class"],
                contract=row.contract or None,
                price_id=row.price_id,
                kind=kind,
                tokens=int(tokens),
                picousd=picousd,
            )
