"""What tenants used and owe over a time, in groups. It groups recorded usage; it prices nothing, it adds
ledger amounts.

A request belongs to the moment it ended, in UTC: to exactly one hour and one day, so that periods add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, literal_column, select

from billing.catalogue.money import ZERO, Money, price_string
from billing.catalogue.price_book import prices_by_id
from billing.ledger.entries import STANDS, Pricing
from billing.moments import utc
from billing.schema.ledger import ledger_posting, ledger_transaction, usage_event

_MS_PER_HOUR: Final = 3_600_000
_MS_PER_DAY: Final = 24 * _MS_PER_HOUR


class Dimension(StrEnum):
    """What usage can be grouped by."""

    TENANT = "tenant"
    MODEL = "model"
    PROJECT = "project"
    KEY = "key"
    CLASS = "class"
    HOUR = "hour"
    DAY = "day"


_COLUMNS: Final[dict[Dimension, ColumnElement[Any]]] = {
    Dimension.TENANT: usage_event.c.tenant,
    Dimension.MODEL: usage_event.c.model,
    Dimension.PROJECT: usage_event.c.project,
    Dimension.KEY: usage_event.c.key_id,
    Dimension.CLASS: usage_event.c["class"],
    Dimension.HOUR: usage_event.c.ended_ms.op("/")(literal_column(str(_MS_PER_HOUR))),
    Dimension.DAY: usage_event.c.ended_ms.op("/")(literal_column(str(_MS_PER_DAY))),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """One group. `cached` is a part of `prompt`. Requests without an amount are counted apart: `unpriced` for
    lack of a price (their tokens are among the billed), `quarantined` for doubt about their usage (their
    tokens are not).
    """

    group: Mapping[str, str]
    requests: int
    prompt: int
    cached: int
    output: int
    absorbed_prompt: int
    absorbed_output: int
    unpriced_requests: int
    unpriced_tokens: int
    quarantined_requests: int
    amount: Money

    def to_json(self) -> dict[str, Any]:
        """The group's own names beside the figures; the amount is an exact decimal string."""
        return {
            **self.group,
            "requests": self.requests,
            "tokens": {"prompt": self.prompt, "cached": self.cached, "output": self.output},
            "absorbed": {"prompt": self.absorbed_prompt, "output": self.absorbed_output},
            "unpriced": {"requests": self.unpriced_requests, "tokens": self.unpriced_tokens},
            "quarantined": {"requests": self.quarantined_requests},
            "amount": str(self.amount),
        }


@dataclass(frozen=True, slots=True)
class BillItem:
    """Tokens of one kind at one price: quantity × price = amount. Without a price they have no amount."""

    model: str
    price_id: int | None
    kind: str
    tokens: int
    price_picousd: int | None

    def to_json(self) -> dict[str, Any]:
        """The price in USD per million tokens."""
        priced = self.price_picousd is not None
        return {
            "model": self.model,
            "price_id": self.price_id,
            "kind": self.kind,
            "tokens": self.tokens,
            "price": price_string(self.price_picousd) if self.price_picousd is not None else None,
            "amount": str(Money(self.tokens * self.price_picousd))
            if priced and self.price_picousd is not None
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
    columns = [_COLUMNS[dimension].label(f"by_{dimension.value}") for dimension in by]
    unpriced = ledger_transaction.c.pricing == Pricing.UNPRICED.value
    tokens = usage_event.c.billed_prompt + usage_event.c.billed_output
    query = (
        select(
            *columns,
            func.count().label("requests"),
            *(_sum(usage_event.c[name]).label(name) for name in _SUMMED),
            func.count().filter(unpriced).label("unpriced_requests"),
            _sum(case((unpriced, tokens), else_=0)).label("unpriced_tokens"),
            func.count()
            .filter(ledger_transaction.c.pricing == Pricing.QUARANTINED.value)
            .label("quarantined_requests"),
            _sum(ledger_posting.c.amount_picousd).label("amount"),
        )
        .select_from(usage_event)
        .join(ledger_transaction, and_(ledger_transaction.c.request_id == usage_event.c.request_id, STANDS))
        .outerjoin(
            ledger_posting,
            and_(
                ledger_posting.c.transaction_id == ledger_transaction.c.transaction_id,
                ledger_posting.c.account == "receivable",
            ),
        )
        .group_by(*columns)
        .order_by(*columns)
    )
    query = _among(query, tenant, from_ms, until_ms)
    lines = tuple(_line(row, by) for row in connection.execute(query).mappings() if row["requests"])
    items = _items(connection, tenant, from_ms, until_ms)
    return UsageReport(
        tenant=tenant,
        by=tuple(by),
        from_ms=from_ms,
        until_ms=until_ms,
        lines=lines,
        total=_total(lines),
        items=items,
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


def _items(
    connection: Connection, tenant: str | None, from_ms: int | None, until_ms: int | None
) -> tuple[BillItem, ...]:
    group = (usage_event.c.model, ledger_transaction.c.price_id)
    tokens = (
        _sum(usage_event.c.billed_prompt - usage_event.c.billed_cached),
        _sum(usage_event.c.billed_cached),
        _sum(usage_event.c.billed_output),
    )
    query = (
        select(*group, *tokens)
        .select_from(usage_event)
        .join(ledger_transaction, and_(ledger_transaction.c.request_id == usage_event.c.request_id, STANDS))
        .where(ledger_transaction.c.pricing.in_((Pricing.PRICED.value, Pricing.UNPRICED.value)))
        .group_by(*group)
        .order_by(*group)
    )
    rows = connection.execute(_among(query, tenant, from_ms, until_ms)).all()
    prices = prices_by_id(connection, [row[1] for row in rows if row[1] is not None])
    found = []
    for model, price_id, *counts in rows:
        price = None if price_id is None else prices[price_id]
        each = (
            (None, None, None)
            if price is None
            else (price.input_picousd, price.cached_input_picousd, price.output_picousd)
        )
        for kind, count, picousd in zip(
            ("uncached_input", "cached_input", "output"), counts, each, strict=True
        ):
            if count:
                found.append(BillItem(model, price_id, kind, int(count), picousd))
    return tuple(found)


_SUMMED: Final = ("billed_prompt", "billed_cached", "billed_output", "absorbed_prompt", "absorbed_output")


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)


def _line(row: Mapping[Any, Any], by: Sequence[Dimension]) -> UsageLine:
    return UsageLine(
        group={dimension.value: _group_value(dimension, row[f"by_{dimension.value}"]) for dimension in by},
        requests=row["requests"],
        prompt=int(row["billed_prompt"]),
        cached=int(row["billed_cached"]),
        output=int(row["billed_output"]),
        absorbed_prompt=int(row["absorbed_prompt"]),
        absorbed_output=int(row["absorbed_output"]),
        unpriced_requests=row["unpriced_requests"],
        unpriced_tokens=int(row["unpriced_tokens"]),
        quarantined_requests=row["quarantined_requests"],
        amount=Money.from_sql(row["amount"]),
    )


def _group_value(dimension: Dimension, value: Any) -> str:
    if dimension is Dimension.HOUR:
        return utc(value * _MS_PER_HOUR)
    if dimension is Dimension.DAY:
        return utc(value * _MS_PER_DAY)[:10]
    return str(value)


def _total(lines: Sequence[UsageLine]) -> UsageLine:
    return UsageLine(
        group={},
        requests=sum(line.requests for line in lines),
        prompt=sum(line.prompt for line in lines),
        cached=sum(line.cached for line in lines),
        output=sum(line.output for line in lines),
        absorbed_prompt=sum(line.absorbed_prompt for line in lines),
        absorbed_output=sum(line.absorbed_output for line in lines),
        unpriced_requests=sum(line.unpriced_requests for line in lines),
        unpriced_tokens=sum(line.unpriced_tokens for line in lines),
        quarantined_requests=sum(line.quarantined_requests for line in lines),
        amount=sum((line.amount for line in lines), ZERO),
    )
