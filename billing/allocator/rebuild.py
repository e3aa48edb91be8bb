"""What the buckets of a cell must hold at least, by the ledger. `restore` raises them to it after Redis has
lost something.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, case, func, or_, select, true

from billing.catalogue import limits
from billing.cell.scripts import BucketLevel, ContractLevel
from billing.contracts.rates import ContractRate
from billing.moments import MINUTE_MS
from billing.schema.any_of import any_of
from billing.schema.catalogue import quota_limit, tenant
from billing.schema.ledger import UNTOLD, in_days, usage_event
from billing.wire import redis_keys
from billing.wire.ending import BILLED_ENDINGS, CHARGED_UNBILLED
from billing.wire.limits import FIELDS, MINUTE_S, LimitKind

# A bucket drains within a minute; older charges only count if the bucket was in debt.
_WINDOW_MS: Final = 120_000
# How finely the output of a stream is distributed over its time; checkpoints charge it twice a second.
_SLICE_MS: Final = 500
# Limits whose use is read from the ledger over their longest window.
_LONG: Final = tuple(each for each in FIELDS if each.window_s > MINUTE_S)
_LONGEST_MS: Final = max(each.window_s for each in _LONG) * 1000
# As `billing.wire.attribution.charged`.
_TOKENS: Final = case(
    (
        or_(
            usage_event.c.ending.in_([each.value for each in CHARGED_UNBILLED]),
            and_(usage_event.c.ending.in_([each.value for each in BILLED_ENDINGS]), UNTOLD),
        ),
        usage_event.c.produced_prompt + usage_event.c.produced_output,
    ),
    else_=usage_event.c.billed_prompt + usage_event.c.billed_output,
)

Charge = tuple[float, float]
Levels = list[BucketLevel | ContractLevel]


@dataclass(slots=True)
class _Charges:
    """The charges of one bucket, each as (ms, amount): requests, and work in mu."""

    requests: list[Charge] = field(default_factory=list)
    units_mu: list[Charge] = field(default_factory=list)
    tokens: list[Charge] = field(default_factory=list)

    def of(self, kind: LimitKind) -> Sequence[Charge]:
        return {
            LimitKind.REQUESTS: self.requests,
            LimitKind.UNITS: self.units_mu,
            LimitKind.TOKENS: self.tokens,
        }[kind]


@dataclass(slots=True)
class _CellCharges:
    """The charges of one cell: limits by tenant, key and model, contracts by id, and spilled work by
    tenant.
    """

    buckets: dict[tuple[str, str | None, str], _Charges] = field(
        default_factory=lambda: defaultdict(_Charges)
    )
    # The same over the longest window, for tenants that have a limit longer than a minute.
    long: dict[tuple[str, str | None, str], _Charges] = field(default_factory=lambda: defaultdict(_Charges))
    used: dict[str, list[Charge]] = field(default_factory=lambda: defaultdict(list))
    spilled: dict[str, list[Charge]] = field(default_factory=lambda: defaultdict(list))

    def add_minute(self, row: Row[Any]) -> None:
        for key_id in (None, row.key_id):
            charges = self.long[row.tenant, key_id, row.model]
            charges.requests.append((row.minute_ms, row.requests))
            charges.units_mu.append((row.minute_ms, float(row.units_mu)))
            charges.tokens.append((row.minute_ms, float(row.tokens)))

    def add(self, row: Row[Any]) -> None:
        work = list(_work(row))
        for key_id in (None, row.key_id):
            charges = self.buckets[row.tenant, key_id, row.model]
            charges.requests.append((row.started_ms + row.waited_ms, 1))
            # Work of a contract is only on the contract's own level.
            charges.units_mu += work if row.contract is None else ()
            charges.tokens += [(row.ended_ms, row.tokens)] if row.contract is None else ()
        if row.contract is not None:
            self.used[row.contract] += work
        elif (row.decision or {}).get("why") == "spilled":
            self.spilled[row.tenant] += work


def levels_of(
    connection: Connection, rates_by_cell: Mapping[str, Sequence[ContractRate]], now_ms: int
) -> dict[str, Levels]:
    """The levels of every bucket with limits and every contract in force in these cells, as ended requests
    left them. Four queries in all.
    """
    charged: dict[str, _CellCharges] = defaultdict(_CellCharges)
    for row in _ended_lately(connection, list(rates_by_cell), now_ms):
        charged[row.cell].add(row)
    for row in _ended_in_long_windows(connection, list(rates_by_cell), now_ms):
        charged[row.cell].add_minute(row)
    found = {who for each in charged.values() for who, _, _ in (*each.buckets, *each.long)}
    table = limits.table_of(connection, found)
    return {
        cell: [
            *_bucket_levels(cell, charged.get(cell, _CellCharges()), table, now_ms),
            *_contract_levels(cell, charged.get(cell, _CellCharges()), rates, now_ms),
        ]
        for cell, rates in rates_by_cell.items()
    }


def _bucket_levels(
    cell: str, charged: _CellCharges, table: limits.Table, now_ms: int
) -> Iterator[BucketLevel]:
    for who, key_id, model in dict.fromkeys((*charged.buckets, *charged.long)):
        short, long = (each.get((who, key_id, model), _Charges()) for each in (charged.buckets, charged.long))
        limit = table.for_model(who, key_id, model)
        key = (
            redis_keys.tenant_bucket(cell, who, model)
            if key_id is None
            else redis_keys.key_bucket(cell, key_id, model)
        )
        levels = [
            (
                each,
                level(
                    (long if each.window_s > MINUTE_S else short).of(each.kind),
                    each.amount / (each.window_s * 1000),
                    now_ms,
                ),
            )
            for each in limit.all
            if each.window_s > 0
        ]
        if levels:
            yield BucketLevel(key, levels)


def _contract_levels(
    cell: str, charged: _CellCharges, rates: Sequence[ContractRate], now_ms: int
) -> Iterator[ContractLevel]:
    for rate in rates:
        spill_per_ms = (rate.spill_mu_s or 0) / 1000
        yield ContractLevel(
            redis_keys.contract_bucket(cell, rate.tenant),
            level(charged.used.get(rate.contract_id, ()), rate.mu_s / 1000, now_ms),
            0
            if rate.spill_mu_s is None
            else level(charged.spilled.get(rate.tenant, ()), spill_per_ms, now_ms),
        )


def level(charges: Sequence[Charge], drains_per_ms: float, now_ms: int) -> float:
    """The level of a leaky bucket now, after these charges."""
    held, before = 0.0, 0.0
    for at, amount in sorted(charges):
        held = max(0.0, held - drains_per_ms * (at - before)) + amount
        before = at
    return max(0.0, held - drains_per_ms * max(0.0, now_ms - before))


def _ended_lately(connection: Connection, cells: Sequence[str], now_ms: int) -> Iterator[Row[Any]]:
    """What ended recently in these cells. It reads tenant by tenant, in the order of the index, because the
    table is long.
    """
    theirs = (
        select(usage_event, _TOKENS.label("tokens"))
        .where(
            in_days(now_ms - _WINDOW_MS, None),
            usage_event.c.tenant == tenant.c.tenant_id,
            usage_event.c.ended_ms > now_ms - _WINDOW_MS,
        )
        .lateral()
    )
    these = any_of(cells)
    query = select(theirs).select_from(tenant.join(theirs, true())).where(theirs.c.cell == these)
    return iter(connection.execute(query))


def _ended_in_long_windows(connection: Connection, cells: Sequence[str], now_ms: int) -> Iterator[Row[Any]]:
    """What ended within the longest window, summed by minute, for tenants with a limit over more than a
    minute.
    """
    limited = select(quota_limit.c.tenant_id).where(
        or_(*(quota_limit.c[each.name].is_not(None) for each in _LONG))
    )
    of = usage_event.c
    minute_ms = (of.ended_ms // MINUTE_MS * MINUTE_MS).label("minute_ms")
    outside = of.contract.is_(None)
    query = (
        select(
            of.cell,
            of.tenant,
            of.key_id,
            of.model,
            minute_ms,
            func.count().label("requests"),
            func.coalesce(func.sum(of.units_mu).filter(outside), 0).label("units_mu"),
            func.coalesce(func.sum(_TOKENS).filter(outside), 0).label("tokens"),
        )
        .where(
            in_days(now_ms - _LONGEST_MS, None), of.tenant.in_(limited), of.ended_ms > now_ms - _LONGEST_MS
        )
        .where(of.cell == any_of(cells))
        .group_by(of.cell, of.tenant, of.key_id, of.model, minute_ms)
    )
    return iter(connection.execute(query))


def _work(row: Row[Any]) -> Iterator[Charge]:
    """The charges over time: the prompt at admission, the output as it streamed."""
    admitted_ms = row.started_ms + row.waited_ms
    output_mu = min(row.units_mu, row.weights["w_out_mu"] * row.produced_output)
    begun_ms = row.first_token_ms or admitted_ms
    slices = max(1, -(-(row.ended_ms - begun_ms) // _SLICE_MS))
    each = (
        (begun_ms + (row.ended_ms - begun_ms) * (number + 1) / slices, output_mu / slices)
        for number in range(slices)
    )
    return chain([(admitted_ms, row.units_mu - output_mu)], each)
