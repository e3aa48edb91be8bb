"""What tenants used and owe over a time, in groups. Owns the grouping of recorded usage; prices nothing, it adds up ledger amounts.

A request belongs to the moment it ended, in UTC: to exactly one hour and one day, so that the periods add up to the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal_column, select

from billing.ledger import STANDS, Pricing
from billing.money import ZERO, Money
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


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One group. `cached` is a part of `prompt`. What has no amount is counted apart: `unpriced` for want of a price (its tokens are
    among the billed), `quarantined` for doubt about its usage (its tokens are not).
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
class UsageReport:
    """Lines in the order of their groups, and their sum."""

    tenant: str | None
    by: tuple[Dimension, ...]
    from_ms: int | None
    until_ms: int | None
    lines: tuple[UsageLine, ...]
    total: UsageLine

    def to_json(self) -> dict[str, Any]:
        """Amounts are in USD."""
        return {
            "tenant": self.tenant,
            "by": [dimension.value for dimension in self.by],
            "from": None if self.from_ms is None else utc_string(self.from_ms),
            "until": None if self.until_ms is None else utc_string(self.until_ms),
            "currency": "USD",
            "lines": [line.to_json() for line in self.lines],
            "total": self.total.to_json(),
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
        .where(usage_event.c.kind == "request")
        .group_by(*columns)
        .order_by(*columns)
    )
    if tenant is not None:
        query = query.where(usage_event.c.tenant == tenant)
    if from_ms is not None:
        query = query.where(usage_event.c.ended_ms >= from_ms)
    if until_ms is not None:
        query = query.where(usage_event.c.ended_ms < until_ms)
    lines = tuple(_line(row, by) for row in connection.execute(query).mappings() if row["requests"])
    return UsageReport(tenant, tuple(by), from_ms, until_ms, lines, _total(lines))


_SUMMED: Final = ("billed_prompt", "billed_cached", "billed_output", "absorbed_prompt", "absorbed_output")


def utc_string(moment_ms: int) -> str:
    """ISO 8601 in UTC, to the second where it is whole."""
    whole, ms = divmod(moment_ms, 1000)
    moment = datetime.fromtimestamp(whole, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{ms:03d}Z" if ms else "Z")


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)


def _line(row: Mapping[Any, Any], by: Sequence[Dimension]) -> UsageLine:
    return UsageLine(
        {dimension.value: _group_value(dimension, row[f"by_{dimension.value}"]) for dimension in by},
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
        return utc_string(value * _MS_PER_HOUR)
    if dimension is Dimension.DAY:
        return utc_string(value * _MS_PER_DAY)[:10]
    return str(value)


def _total(lines: Sequence[UsageLine]) -> UsageLine:
    return UsageLine(
        {},
        sum(line.requests for line in lines),
        sum(line.prompt for line in lines),
        sum(line.cached for line in lines),
        sum(line.output for line in lines),
        sum(line.absorbed_prompt for line in lines),
        sum(line.absorbed_output for line in lines),
        sum(line.unpriced_requests for line in lines),
        sum(line.unpriced_tokens for line in lines),
        sum(line.quarantined_requests for line in lines),
        sum((line.amount for line in lines), ZERO),
    )
