"""What tenants used and owe over a time, in groups. It groups recorded usage; it prices nothing, it adds
ledger amounts.

A request belongs to the moment it ended, in UTC: to exactly one hour and one day, so that periods add up.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    ColumnCollection,
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    Subquery,
    Table,
    and_,
    case,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    union_all,
)

from billing.catalogue.money import ZERO, Money, price_string
from billing.catalogue.price_book import COST, SALE, Price, PriceList, prices_by_id
from billing.ledger.cost import COST_AMOUNT, COST_PRICE
from billing.ledger.dropped import refuse_dropped
from billing.ledger.entries import OWED_EVENTS, Pricing
from billing.ledger.maker_terms import TermsInTime, of_tokens, rounded
from billing.moments import DAY_MS, HOUR_MS, day_of, utc
from billing.schema.ledger import (
    TOLD,
    UNTOLD,
    in_days,
    ledger_posting,
    ledger_transaction,
    summed_day,
    usage_day,
    usage_event,
    usage_hour,
)
from billing.wire.dimensions import Dimension
from billing.wire.part_ids import LATER_PART_LIKE
from billing.wire.tokens import TOKEN_KINDS, by_kind


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)


_of = usage_event.c
_SUMMED: Final = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output", "amount_picousd",
)  # fmt: skip
_NAMES: Final = (
    "tenant", "project", "key_id", "model", "instance", "class", "contract", "hour", "pricing", "price_id",
)  # fmt: skip
# What each dimension groups by: the column of its name, or one of these.
_COLUMN_OF: Final = {Dimension.KEY: "key_id", Dimension.DAY: "hour"}
_HOUR: Final = _of.ended_ms.op("/")(literal_column(str(HOUR_MS)))
# As `usage_hour` has it.
CLASS: Final = case((_of.line.is_not(None), "batch"), else_=_of["class"])
# Narrows a query of events to the requests of a report.
Among = Callable[[Select[Any]], Select[Any]]
_DAY_HOURS: Final[ColumnElement[int]] = literal_column("24::bigint")
_LATER_PART: Final = _of.request_id.like(LATER_PART_LIKE)


def _figures(of: ColumnCollection[str, Any]) -> dict[str, ColumnElement[Any]]:
    """What a line counts, by its place in the answer. `cached` and `written` are parts of `prompt`. Requests
    without an amount are counted apart: `unpriced` for lack of a price (their tokens are among the billed),
    `quarantined` for doubt about their usage (their tokens are not).
    """
    unpriced = of.pricing == Pricing.UNPRICED.value
    return {
        "requests": _sum(of.requests),
        "tokens.prompt": _sum(of.billed_prompt),
        "tokens.cached": _sum(of.billed_cached),
        "tokens.written": _sum(of.billed_written),
        "tokens.output": _sum(of.billed_output),
        "absorbed.prompt": _sum(of.absorbed_prompt),
        "absorbed.output": _sum(of.absorbed_output),
        "unpriced.requests": _sum(case((unpriced, of.requests), else_=0)),
        "unpriced.tokens": _sum(case((unpriced, of.billed_prompt + of.billed_output), else_=0)),
        "quarantined.requests": _sum(case((of.pricing == Pricing.QUARANTINED.value, of.requests), else_=0)),
    }


# Of requests that went to providers: those without a cost.
_UNCOSTED: Final[dict[str, ColumnElement[Any]]] = {
    "uncosted.requests": func.count().filter(and_(TOLD, COST_PRICE.c.price_id.is_(None))),
    "untold.requests": func.count().filter(UNTOLD),
}


def tokens_by_kind(of: ColumnCollection[str, Any], what: str) -> tuple[ColumnElement[Any], ...]:
    """The sums of tokens that were `billed` or `produced`, in the order of `TOKEN_KINDS`."""
    counts = by_kind(*(of[f"{what}_{name}"] for name in ("prompt", "cached", "written", "output")))
    return tuple(_sum(count) for count in counts)


_PLACES: Final = tuple(_figures(usage_hour.c))


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One group: its own names, its figures by their places in the answer, what its tenants owe for it, what
    providers charge for it, and what models' makers get of it.
    """

    group: Mapping[str, str]
    figures: Mapping[str, int]
    amount: Money
    cost: Money
    makers: Money

    @classmethod
    def added_up(cls, lines: Iterable["UsageLine"]) -> "UsageLine":
        """The sum of these lines, as a line without names."""
        some = tuple(lines)
        figures = {place: sum(line.figures[place] for line in some) for place in (*_PLACES, *_UNCOSTED)}
        sums = (sum((getattr(line, name) for line in some), ZERO) for name in ("amount", "cost", "makers"))
        return cls({}, figures, *sums)

    def to_json(self) -> dict[str, Any]:
        """The group's own names beside the figures; the amount is an exact decimal string."""
        shown: dict[str, Any] = dict(self.group)
        for place, count in self.figures.items():
            whole, _, part = place.partition(".")
            if part:
                shown.setdefault(whole, {})[part] = count
            else:
                shown[whole] = count
        return shown | {
            "amount": str(self.amount),
            "cost": str(self.cost),
            "cost_makers": str(self.makers),
            "margin": str(self.amount - self.cost - self.makers),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BillItem:
    """Tokens of one kind at one price: quantity × price = amount. Without a price they have no amount.
    `instance`: of what its provider charges.
    """

    model: str
    price_id: int | None
    kind: str
    tokens: int
    price_picousd: int | None
    instance: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The price in USD per million tokens."""
        place = {} if self.instance is None else {"instance": self.instance}
        return place | {
            "model": self.model,
            "price_id": self.price_id,
            "kind": self.kind,
            "tokens": self.tokens,
            "price": price_string(self.price_picousd) if self.price_picousd is not None else None,
            "amount": str(Money(self.tokens * self.price_picousd))
            if self.price_picousd is not None
            else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Lines in the order of their groups, their sum, and the items whose amounts add up to it."""

    tenant: str | None
    by: tuple[Dimension, ...]
    from_ms: int | None
    until_ms: int | None
    lines: tuple[UsageLine, ...]
    total: UsageLine
    items: tuple[BillItem, ...] = ()
    cost_items: tuple[BillItem, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Amounts are in USD."""
        return {
            "tenant": self.tenant,
            "by": [dimension.value for dimension in self.by],
            "from": None if self.from_ms is None else utc(self.from_ms),
            "until": None if self.until_ms is None else utc(self.until_ms),
            "currency": "USD",
            "lines": [line.to_json() for line in self.lines],
            "total": self.total.to_json(),
            "items": [item.to_json() for item in self.items],
            "cost_items": [item.to_json() for item in self.cost_items],
        }


def parse_dimensions(text: str) -> tuple[Dimension, ...]:
    """Read `model,hour`; ValueError names the word that is not a dimension."""
    by = tuple(Dimension(word.strip()) for word in text.split(",") if word.strip())
    if len(set(by)) != len(by):
        raise ValueError(f"{text!r} names a dimension twice")
    return by


def report_usage(
    connection: Connection,
    *,
    tenant: str | None,
    by: Sequence[Dimension] = (),
    from_ms: int | None = None,
    until_ms: int | None = None,
) -> UsageReport:
    """The usage of one tenant, or of all, of requests that ended in [from, until)."""
    for begins_ms, ends_ms in read_from_requests(from_ms, until_ms):
        refuse_dropped(connection, begins_ms, ends_ms)
    usage = usage_between(tenant, from_ms, until_ms, by_hour=Dimension.HOUR in by)
    columns = [_grouped(usage.c, each).label(f"by_{each.value}") for each in by]
    query = (
        select(
            *columns,
            *(figure.label(place) for place, figure in _figures(usage.c).items()),
            _sum(usage.c.amount_picousd).label("amount"),
            func.count().label("hours"),
        )
        .group_by(*columns)
        .order_by(*columns)
    )
    among = partial(_among, tenant=tenant, from_ms=from_ms, until_ms=until_ms)
    costs = _costs(connection, among, by)
    makers = _makers(connection, tenant, by, from_ms, until_ms)
    lines = tuple(
        _line(row, by, costs.get(group), makers.get(group, ZERO))
        for row in connection.execute(query).mappings()
        if row["hours"]
        for group in [tuple(row[column.name] for column in columns)]
    )
    return UsageReport(
        tenant=tenant,
        by=tuple(by),
        from_ms=from_ms,
        until_ms=until_ms,
        lines=lines,
        total=UsageLine.added_up(lines),
        items=_items(connection, usage),
        cost_items=_cost_items(connection, among),
    )


def read_from_requests(from_ms: int | None, until_ms: int | None) -> list[tuple[int, int]]:
    """What `usage_between` reads from requests: parts of hours."""
    parts = []
    if from_ms is not None and from_ms % HOUR_MS:
        parts.append((from_ms, from_ms + -from_ms % HOUR_MS))
    if until_ms is not None and until_ms % HOUR_MS:
        parts.append((until_ms // HOUR_MS * HOUR_MS, until_ms))
    return parts


def usage_between(
    tenant: str | None, from_ms: int | None, until_ms: int | None, *, by_hour: bool = False
) -> Subquery:
    """Sums of requests that ended in [from, until), by the `hour` in which they or their day began. Whole
    days are read from `usage_day` where it has them, whole hours from `usage_hour`, and only what is left at
    the ends from the requests themselves. `by_hour`: from hours and requests alone.
    """
    sources = _SUMS[1:] if by_hour else _SUMS
    return union_all(*_parts(tenant, from_ms, until_ms, sources)).subquery("usage")


def _columns(table: Table, hour: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    return [hour.label(name) if name == "hour" else table.c[name] for name in (*_NAMES, *_SUMMED)]


def _of_hours(tenant: str | None, first: Any, last: Any) -> Select[Any]:
    """Of hours in [first, last)."""
    of = usage_hour.c
    query = select(*_columns(usage_hour, of.hour))
    if tenant is not None:
        query = query.where(of.tenant == tenant)
    if first is not None:
        query = query.where(of.hour >= first)
    return query if last is None else query.where(of.hour < last)


def _of_days(tenant: str | None, first: int | None, last: int | None) -> CompoundSelect[Any]:
    """Of days in [first, last): those that are added up, and the hours of all others, which lie before,
    between and after them.
    """
    lowest, highest = (-(2**30) if first is None else first), (2**30 if last is None else last)
    of = usage_day.c
    whole = select(summed_day.c.day).where(
        summed_day.c.whole, summed_day.c.day >= lowest, summed_day.c.day < highest
    )
    added_up = select(*_columns(usage_day, of.day * _DAY_HOURS)).where(of.day.in_(whole))
    if tenant is not None:
        added_up = added_up.where(of.tenant == tenant)
    ends = union_all(whole, select(literal(highest).label("day"))).subquery("ends")
    begins = func.lag(ends.c.day, 1, lowest - 1).over(order_by=ends.c.day) + 1
    gaps = select(begins.label("first"), ends.c.day.label("last")).subquery("gaps")
    # By its offset each gap's hours are read by themselves: PostgreSQL would read all hours of a tenant, and
    # look for the gap of each.
    hours = _of_hours(tenant, gaps.c.first * _DAY_HOURS, gaps.c.last * _DAY_HOURS)
    each = hours.offset(literal_column("0")).lateral("hours")
    left = select(*each.c).select_from(gaps.join(each, true())).where(gaps.c.first < gaps.c.last)
    return added_up.union_all(left)


# Sums by time: how to read them, and how long that time is.
_SUMS: Final = ((_of_days, DAY_MS), (_of_hours, HOUR_MS))


def _parts(
    tenant: str | None, from_ms: int | None, until_ms: int | None, sources: Sequence[Any]
) -> list[Any]:
    if not sources:
        return [usage_of_requests(tenant, from_ms, until_ms)]
    (read, length_ms), *finer = sources
    first = None if from_ms is None else -(-from_ms // length_ms)
    last = None if until_ms is None else until_ms // length_ms
    if first is not None and last is not None and first >= last:
        return _parts(tenant, from_ms, until_ms, finer)
    parts = [read(tenant, first, last)]
    if first is not None and from_ms != first * length_ms:
        parts += _parts(tenant, from_ms, first * length_ms, finer)
    if last is not None and until_ms != last * length_ms:
        parts += _parts(tenant, last * length_ms, until_ms, finer)
    return parts


def usage_of_requests(tenant: str | None, from_ms: int | None, until_ms: int | None) -> Select[Any]:
    """The columns of `usage_hour` of each request."""
    columns = [
        *(_of[name] for name in _NAMES[:5]), CLASS.label("class"),
        func.coalesce(_of.contract, "").label("contract"), _HOUR.label("hour"), ledger_transaction.c.pricing,
        func.coalesce(ledger_transaction.c.price_id, 0).label("price_id"),
        case((_LATER_PART, 0), else_=1).label("requests"), *(_of[name] for name in _SUMMED[1:-1]),
        func.coalesce(ledger_posting.c.amount_picousd, 0).label("amount_picousd"),
    ]  # fmt: skip
    query = select(*columns).select_from(OWED_EVENTS)
    return _among(query, tenant=tenant, from_ms=from_ms, until_ms=until_ms)


def _grouped(of: ColumnCollection[str, Any], by: Dimension) -> ColumnElement[Any]:
    column: ColumnElement[Any] = of[_COLUMN_OF.get(by, by.value)]
    return column.op("/")(literal_column("24")) if by is Dimension.DAY else column


def _of_events(by: Dimension) -> ColumnElement[Any]:
    if by in {Dimension.HOUR, Dimension.DAY}:
        return _HOUR if by is Dimension.HOUR else _HOUR.op("/")(literal_column("24"))
    if by is Dimension.CLASS:
        return CLASS
    if by is Dimension.CONTRACT:
        return func.coalesce(_of.contract, literal_column("''"))
    return _of[_COLUMN_OF.get(by, by.value)]


def _costs(
    connection: Connection, among: Among, by: Sequence[Dimension]
) -> dict[tuple[Any, ...], Mapping[Any, Any]]:
    """What providers charge, and what of it is not known, by group. Read from the requests that went there,
    because a cost price may come later.
    """
    columns = [_of_events(each) for each in by]
    query = (
        select(
            *columns,
            *(figure.label(place) for place, figure in _UNCOSTED.items()),
            _sum(COST_AMOUNT).label("cost"),
        )
        .select_from(usage_event.outerjoin(COST_PRICE, true()))
        .where(_of.provider.is_not(None))
        .group_by(*columns)
    )
    rows = connection.execute(among(query)).all()
    return {tuple(row[: len(columns)]): row._mapping for row in rows}


def _makers(
    connection: Connection,
    tenant: str | None,
    by: Sequence[Dimension],
    from_ms: int | None,
    until_ms: int | None,
) -> dict[tuple[Any, ...], Money]:
    """What models' makers get of what is owed for tokens, by group."""
    terms = TermsInTime(connection)
    found: defaultdict[tuple[Any, ...], Fraction] = defaultdict(Fraction)
    for begins_ms, ends_ms in terms.spans(from_ms, until_ms):
        of = usage_between(tenant, begins_ms, ends_ms, by_hour=Dimension.HOUR in by).c
        columns = [_grouped(of, each).label(f"by_{each.value}") for each in by]
        sums = (_sum(of[name]) for name in ("billed_prompt", "billed_output", "amount_picousd"))
        held = terms.held_at(begins_ms)
        query = select(*columns, of.model.label("model"), *sums).where(of.model.in_(held))
        for *group, model, prompt, output, picousd in connection.execute(
            query.group_by(*columns, of.model).order_by(*columns, of.model)
        ):
            found[tuple(group)] += of_tokens(held[model], int(prompt), int(output), int(picousd))
    return rounded(found)


def _among(query: Select[Any], tenant: str | None, from_ms: int | None, until_ms: int | None) -> Select[Any]:
    query = query.where(_of.kind == "request", in_days(from_ms, until_ms))
    if tenant is not None:
        query = query.where(_of.tenant == tenant)
    if from_ms is not None:
        query = query.where(_of.ended_ms >= from_ms)
    if until_ms is not None:
        query = query.where(_of.ended_ms < until_ms)
    return query


def _items(connection: Connection, usage: Subquery) -> tuple[BillItem, ...]:
    group = (usage.c.model, usage.c.price_id)
    query = (
        select(usage.c.model, null(), func.nullif(usage.c.price_id, 0), *tokens_by_kind(usage.c, "billed"))
        .where(usage.c.pricing.in_((Pricing.PRICED.value, Pricing.UNPRICED.value)))
        .group_by(*group)
        .order_by(usage.c.model, func.nullif(usage.c.price_id, 0))
    )
    return _bill_items(connection, query, SALE)


def _cost_items(connection: Connection, among: Among) -> tuple[BillItem, ...]:
    """What providers have said that they produced, at the cost price that held."""
    group = (usage_event.c.model, usage_event.c.instance, COST_PRICE.c.price_id)
    query = (
        select(*group, *tokens_by_kind(_of, "produced"))
        .select_from(usage_event.outerjoin(COST_PRICE, true()))
        .where(TOLD)
        .group_by(*group)
        .order_by(*group)
    )
    return _bill_items(connection, among(query), COST)


def _bill_items(connection: Connection, query: Select[Any], of: PriceList) -> tuple[BillItem, ...]:
    """`query` gives model, instance, price and the tokens by kind."""
    rows = connection.execute(query).all()
    prices = prices_by_id(connection, [row[2] for row in rows if row[2] is not None], of=of)
    return tuple(
        BillItem(
            model=model,
            instance=instance,
            price_id=price_id,
            kind=kind,
            tokens=int(tokens),
            price_picousd=picousd,
        )
        for model, instance, price_id, *counts in rows
        for kind, picousd, tokens in zip(TOKEN_KINDS, _by_kind(prices.get(price_id)), counts, strict=True)
        if tokens
    )


def _by_kind(price: Price | None) -> Sequence[int | None]:
    return (None,) * len(TOKEN_KINDS) if price is None else price.by_kind


def _line(
    row: Mapping[Any, Any], by: Sequence[Dimension], cost: Mapping[Any, Any] | None, makers: Money
) -> UsageLine:
    """`cost` None: nothing went to providers."""
    figures = {place: int(value) for place, value in row.items() if place in _PLACES}
    unknown = {place: 0 if cost is None else int(cost[place]) for place in _UNCOSTED}
    return UsageLine(
        {dimension.value: _group_value(dimension, row[f"by_{dimension.value}"]) for dimension in by},
        figures | unknown,
        Money.from_sql(row["amount"]),
        ZERO if cost is None else Money.from_sql(cost["cost"]),
        makers,
    )


def _group_value(dimension: Dimension, value: Any) -> str:
    if dimension is Dimension.HOUR:
        return utc(value * HOUR_MS)
    if dimension is Dimension.DAY:
        return day_of(value * DAY_MS)
    return str(value or "")  # not every column has a value in every event
