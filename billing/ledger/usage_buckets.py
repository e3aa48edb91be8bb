"""Usage and costs in buckets of a minute, an hour or a day of UTC. Hours and days are read from sums, minutes
from the requests themselves. It groups; it prices nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    case,
    cast,
    func,
    literal_column,
    not_,
    or_,
    select,
)

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import prices_by_id
from billing.ledger.dropped import refuse_dropped
from billing.ledger.usage_report import tokens_by_kind, usage_between, usage_of_requests
from billing.moments import DAY_MS, HOUR_MS
from billing.schema.any_of import any_of
from billing.schema.catalogue import instance, model
from billing.schema.catalogue import tenant as tenant_table
from billing.schema.ledger import usage_event
from billing.wire.routes import OFFERED_ROUTES, ROUTE_FACTS, Route
from billing.wire.tokens import TOKEN_KINDS

_GENERATING: Final = tuple(name for name in OFFERED_ROUTES if ROUTE_FACTS[Route(name)].generates)
# What may be grouped by, and its column of the sums by hour.
GROUPS: Final[Mapping[str, str]] = {
    "project_id": "project", "api_key_id": "key_id", "model": "model", "service_tier": "class",
    "batch": "class",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Usage that ended in [from, until), whole buckets of this width. None: of all. `pools`: what was made of
    prompts alone (embeddings, scores); False: all else. `batch`: lines of batches; False: all else.
    """

    from_ms: int
    until_ms: int
    width_ms: int
    by: Sequence[str] = ()
    tenant_id: str | None = None
    project_ids: Sequence[str] | None = None
    key_ids: Sequence[str] | None = None
    models: Sequence[str] | None = None
    pools: bool | None = None
    batch: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGroup:
    """One group of one bucket. `cached` and `written` are parts of `prompt`; tokens are those billed."""

    bucket_ms: int
    names: Mapping[str, Any]
    requests: int
    prompt: int
    cached: int
    written: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CostGroup:
    """What is owed for one group of one day. `kind` and `tokens` if it is grouped by these; `item`: what it
    is for, beside tokens.
    """

    bucket_ms: int
    names: Mapping[str, Any]
    amount: Money
    kind: str | None = None
    tokens: int | None = None
    item: str | None = None


def read_usage(connection: Connection, wanted: Wanted) -> list[UsageGroup]:
    """In the order of time, then of the groups."""
    source, bucket = _source(connection, wanted)
    columns = [_grouped(source, name) for name in wanted.by]
    sums = [
        func.coalesce(func.sum(source.c[name]), 0)
        for name in ("requests", "billed_prompt", "billed_cached", "billed_written", "billed_output")
    ]
    query = select(bucket, *columns, *sums).group_by(bucket, *columns).order_by(bucket, *columns)
    found = []
    for row in connection.execute(_narrowed(query, source, wanted)):
        requests, prompt, cached, written, output = map(int, row[-5:])
        found.append(
            UsageGroup(
                bucket_ms=int(row[0]) * wanted.width_ms,
                names=dict(zip(wanted.by, row[1:-5], strict=True)),
                requests=requests,
                prompt=prompt,
                cached=cached,
                written=written,
                output=output,
            )
        )
    return found


def read_costs(connection: Connection, wanted: Wanted, *, by_item: bool) -> list[CostGroup]:
    """In the order of time, then of the groups. `by_item`: apart for each model and kind of tokens; these add
    up to the others.
    """
    source, bucket = _source(connection, wanted)
    columns = [_grouped(source, name) for name in wanted.by]
    if not by_item:
        amount = func.coalesce(func.sum(source.c.amount_picousd), 0)
        query = select(bucket, *columns, amount).group_by(bucket, *columns).order_by(bucket, *columns)
        return [
            CostGroup(
                bucket_ms=int(row[0]) * wanted.width_ms,
                names=dict(zip(wanted.by, row[1:-1], strict=True)),
                amount=Money.from_sql(row[-1]),
            )
            for row in connection.execute(_narrowed(query, source, wanted))
        ]
    columns.append(source.c.model)
    query = select(bucket, *columns, source.c.price_id, *tokens_by_kind(source.c, "billed"))
    query = query.where(source.c.price_id != 0).group_by(bucket, *columns, source.c.price_id)
    rows = connection.execute(_narrowed(query, source, wanted)).all()
    return _added_up(connection, rows, wanted)


def _added_up(connection: Connection, rows: Sequence[Any], wanted: Wanted) -> list[CostGroup]:
    """The rows of one kind of tokens of one model, over all its prices."""
    at = len(wanted.by) + 2
    prices = prices_by_id(connection, list({row[at] for row in rows}))
    tokens: dict[tuple[Any, ...], int] = {}
    amounts: dict[tuple[Any, ...], Money] = {}
    for row in rows:
        for kind, picousd, count in zip(TOKEN_KINDS, prices[row[at]].by_kind, row[at + 1 :], strict=True):
            if count:
                place = (*row[:at], kind)
                tokens[place] = tokens.get(place, 0) + int(count)
                amounts[place] = amounts.get(place, ZERO) + Money(int(count) * picousd)
    return [
        CostGroup(
            bucket_ms=int(place[0]) * wanted.width_ms,
            names=dict(zip((*wanted.by, "model"), place[1:-1], strict=True)),
            amount=amounts[place],
            kind=place[-1],
            tokens=count,
        )
        for place, count in sorted(tokens.items())
    ]


def _source(connection: Connection, wanted: Wanted) -> tuple[FromClause, ColumnElement[Any]]:
    """Rows with the columns of the sums by hour, and the number of their bucket."""
    if wanted.width_ms >= HOUR_MS:
        by_hour = wanted.width_ms < DAY_MS
        hours = usage_between(wanted.tenant_id, wanted.from_ms, wanted.until_ms, by_hour=by_hour)
        return hours, hours.c.hour.op("/")(literal_column(str(wanted.width_ms // HOUR_MS)))
    refuse_dropped(connection, wanted.from_ms, wanted.until_ms)
    minute = usage_event.c.ended_ms.op("/")(literal_column(str(wanted.width_ms))).label("minute")
    query = usage_of_requests(wanted.tenant_id, wanted.from_ms, wanted.until_ms).add_columns(minute)
    if wanted.tenant_id is None:
        # The index begins with the tenant.
        all_ids = connection.execute(select(tenant_table.c.tenant_id)).scalars().all()
        query = query.where(usage_event.c.tenant == any_of(all_ids))
    events = query.subquery("usage")
    return events, events.c.minute


def _grouped(source: FromClause, name: str) -> ColumnElement[Any]:
    column: ColumnElement[Any] = source.c[GROUPS[name]]
    if name == "batch":
        return column == "batch"
    if name == "service_tier":
        return case((column == "reserved", "priority"), (column == "on_demand", "default"), else_="flex")
    return column


def _narrowed(query: Select[Any], source: FromClause, wanted: Wanted) -> Select[Any]:
    among = {"project": wanted.project_ids, "key_id": wanted.key_ids, "model": wanted.models}
    for name, values in among.items():
        if values is not None:
            query = query.where(source.c[name] == any_of(values))
    if wanted.batch is not None:
        query = query.where((source.c["class"] == "batch").is_(wanted.batch))
    if wanted.pools is not None:
        generating = cast(list(_GENERATING), ARRAY(Text))

        def without(routes: ColumnElement[Any]) -> ColumnElement[bool]:
            some: ColumnElement[bool] = routes.op("&&", is_comparison=True)(generating)
            return not_(some)

        pooled = or_(
            source.c.model.in_(select(model.c.name).where(without(model.c.routes))),
            source.c.instance.in_(select(instance.c.instance_id).where(without(instance.c.routes))),
        )
        query = query.where(pooled if wanted.pools else not_(pooled))
    return query
