"""What tenants used and owe over a time, in groups. It groups recorded usage; it prices nothing, it adds
ledger amounts.

A request belongs to the moment it ended, in UTC: to exactly one hour and one day, so that periods add up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, literal_column, null, select, true

from billing.catalogue.money import ZERO, Money, price_string
from billing.catalogue.price_book import COST, SALE, Price, PriceList, prices_by_id
from billing.ledger.cost import COST_AMOUNT, COST_PRICE
from billing.ledger.entries import OWED_EVENTS, PRICED_EVENTS, Pricing
from billing.moments import utc
from billing.schema.ledger import TOLD, UNTOLD, ledger_posting, ledger_transaction, usage_event
from billing.wire.dimensions import Dimension
from billing.wire.part_ids import LATER_PART_LIKE

_MS_PER_HOUR: Final = 3_600_000
_MS_PER_DAY: Final = 24 * _MS_PER_HOUR


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)


_of, _pricing = usage_event.c, ledger_transaction.c.pricing
# What each dimension groups by: the column of its name, or one of these.
_GROUPED_BY: Final[dict[str, ColumnElement[Any]]] = {
    **_of,
    Dimension.KEY: _of.key_id,
    Dimension.HOUR: _of.ended_ms.op("/")(literal_column(str(_MS_PER_HOUR))),
    Dimension.DAY: _of.ended_ms.op("/")(literal_column(str(_MS_PER_DAY))),
}
# Narrows a query to the requests of a report.
Among = Callable[[Select[Any]], Select[Any]]
_LATER_PART: Final = _of.request_id.like(LATER_PART_LIKE)
_UNPRICED: Final = _pricing == Pricing.UNPRICED.value
# What a line counts, by its place in the answer. `cached` and `written` are parts of `prompt`. Requests
# without an amount are counted apart: `unpriced` for lack of a price (their tokens are among the billed),
# `quarantined` for doubt about their usage (their tokens are not). So are those without a cost.
_FIGURES: Final[dict[str, ColumnElement[Any]]] = {
    "requests": func.count().filter(~_LATER_PART),
    "tokens.prompt": _sum(_of.billed_prompt),
    "tokens.cached": _sum(_of.billed_cached),
    "tokens.written": _sum(_of.billed_written),
    "tokens.output": _sum(_of.billed_output),
    "absorbed.prompt": _sum(_of.absorbed_prompt),
    "absorbed.output": _sum(_of.absorbed_output),
    "unpriced.requests": func.count().filter(_UNPRICED),
    "unpriced.tokens": _sum(case((_UNPRICED, _of.billed_prompt + _of.billed_output), else_=0)),
    "quarantined.requests": func.count().filter(_pricing == Pricing.QUARANTINED.value),
    "uncosted.requests": func.count().filter(and_(TOLD, COST_PRICE.c.price_id.is_(None))),
    "untold.requests": func.count().filter(UNTOLD),
}
# The price of each kind of tokens.
_KINDS: Final[dict[str, Callable[[Price], int]]] = {
    "uncached_input": lambda price: price.input_picousd,
    "cached_input": lambda price: price.cached_input_picousd,
    "cache_write": lambda price: price.written_picousd,
    "output": lambda price: price.output_picousd,
}


def _by_kind(what: str) -> tuple[ColumnElement[Any], ...]:
    """The sums of tokens that were `billed` or `produced`, in the order of `_KINDS`."""
    prompt, cached, written, output = (
        _of[f"{what}_{name}"] for name in ("prompt", "cached", "written", "output")
    )
    return _sum(prompt - cached - written), _sum(cached), _sum(written), _sum(output)


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One group: its own names, its figures by the names of `_FIGURES`, what its tenants owe for it, and what
    providers charge for it.
    """

    group: Mapping[str, str]
    figures: Mapping[str, int]
    amount: Money
    cost: Money

    def to_json(self) -> dict[str, Any]:
        """The group's own names beside the figures; the amount is an exact decimal string."""
        shown: dict[str, Any] = dict(self.group)
        for place, count in self.figures.items():
            whole, _, part = place.partition(".")
            if part:
                shown.setdefault(whole, {})[part] = count
            else:
                shown[whole] = count
        margin = self.amount - self.cost
        return shown | {"amount": str(self.amount), "cost": str(self.cost), "margin": str(margin)}


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
    columns = [_GROUPED_BY[each].label(f"by_{each.value}") for each in by]
    query = (
        select(
            *columns,
            *(figure.label(place) for place, figure in _FIGURES.items()),
            _sum(ledger_posting.c.amount_picousd).label("amount"),
            _sum(COST_AMOUNT).label("cost"),
        )
        .select_from(OWED_EVENTS.outerjoin(COST_PRICE, true()))
        .group_by(*columns)
        .order_by(*columns)
    )
    among = partial(_among, tenant=tenant, from_ms=from_ms, until_ms=until_ms)
    lines = tuple(_line(row, by) for row in connection.execute(among(query)).mappings() if row["requests"])
    return UsageReport(
        tenant=tenant,
        by=tuple(by),
        from_ms=from_ms,
        until_ms=until_ms,
        lines=lines,
        total=_total(lines),
        items=_items(connection, among),
        cost_items=_cost_items(connection, among),
    )


def _among(query: Select[Any], tenant: str | None, from_ms: int | None, until_ms: int | None) -> Select[Any]:
    query = query.where(usage_event.c.kind == "request")
    if tenant is not None:
        query = query.where(usage_event.c.tenant == tenant)
    if from_ms is not None:
        query = query.where(usage_event.c.ended_ms >= from_ms)
    if until_ms is not None:
        query = query.where(usage_event.c.ended_ms < until_ms)
    return query


def _items(connection: Connection, among: Among) -> tuple[BillItem, ...]:
    group = (usage_event.c.model, ledger_transaction.c.price_id)
    query = (
        select(_of.model, null(), ledger_transaction.c.price_id, *_by_kind("billed"))
        .select_from(PRICED_EVENTS)
        .where(ledger_transaction.c.pricing.in_((Pricing.PRICED.value, Pricing.UNPRICED.value)))
        .group_by(*group)
        .order_by(*group)
    )
    return _bill_items(connection, among(query), SALE)


def _cost_items(connection: Connection, among: Among) -> tuple[BillItem, ...]:
    """What providers have said that they produced, at the cost price that held."""
    group = (usage_event.c.model, usage_event.c.instance, COST_PRICE.c.price_id)
    query = (
        select(*group, *_by_kind("produced"))
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
            price_picousd=None if price_id is None else price_of(prices[price_id]),
        )
        for model, instance, price_id, *counts in rows
        for (kind, price_of), tokens in zip(_KINDS.items(), counts, strict=True)
        if tokens
    )


def _line(row: Mapping[Any, Any], by: Sequence[Dimension]) -> UsageLine:
    return UsageLine(
        {dimension.value: _group_value(dimension, row[f"by_{dimension.value}"]) for dimension in by},
        {place: int(row[place]) for place in _FIGURES},
        Money.from_sql(row["amount"]),
        Money.from_sql(row["cost"]),
    )


def _group_value(dimension: Dimension, value: Any) -> str:
    if dimension is Dimension.HOUR:
        return utc(value * _MS_PER_HOUR)
    if dimension is Dimension.DAY:
        return utc(value * _MS_PER_DAY)[:10]
    return str(value or "")  # not every column has a value in every event


def _total(lines: Sequence[UsageLine]) -> UsageLine:
    figures = {place: sum(line.figures[place] for line in lines) for place in _FIGURES}
    amount, cost = (sum((getattr(line, name) for line in lines), ZERO) for name in ("amount", "cost"))
    return UsageLine({}, figures, amount, cost)
