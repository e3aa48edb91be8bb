"""What the buckets of a cell must hold by the ledger, for `restore`, which raises them to it after Redis has lost something."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from sqlalchemy import ARRAY, Connection, Row, Text, any_, literal, select, true

from billing.catalogue import limits
from billing.cell.scripts import BucketLevel, ContractLevel
from billing.contracts.rates import ContractRate
from billing.schema.catalogue import tenant
from billing.schema.ledger import usage_event
from billing.wire import redis_keys
from billing.wire.limits import LimitKind

# A bucket drains within a minute; what is older counts only where it was in debt.
_WINDOW_MS: Final = 120_000
# How finely the output of a stream is spread over its time; checkpoints charge it twice a second.
_SLICE_MS: Final = 500

Charge = tuple[float, float]
Levels = list[BucketLevel | ContractLevel]


@dataclass(slots=True)
class _Charges:
    """What one bucket was charged, each (ms, amount): requests, and work in mu."""

    requests: list[Charge] = field(default_factory=list)
    units_mu: list[Charge] = field(default_factory=list)

    def of(self, kind: LimitKind) -> Sequence[Charge]:
        return {LimitKind.REQUESTS: self.requests, LimitKind.UNITS: self.units_mu}[kind]


@dataclass(slots=True)
class _CellCharges:
    """What one cell was charged: limits by tenant, key and model, contracts by id, and what spilled by tenant."""

    buckets: dict[tuple[str, str | None, str], _Charges] = field(default_factory=lambda: defaultdict(_Charges))
    used: dict[str, list[Charge]] = field(default_factory=lambda: defaultdict(list))
    spilled: dict[str, list[Charge]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: Row[Any]) -> None:
        work = list(_work(row))
        for key_id in (None, row.key_id):
            charges = self.buckets[row.tenant, key_id, row.model]
            charges.requests.append((row.started_ms + row.waited_ms, 1))
            # What a contract took is on its own level alone.
            charges.units_mu += work if row.contract is None else ()
        if row.contract is not None:
            self.used[row.contract] += work
        elif (row.decision or {}).get("why") == "spilled":
            self.spilled[row.tenant] += work


def levels_of(
    connection: Connection, rates_by_cell: Mapping[str, Sequence[ContractRate]], now_ms: int
) -> dict[str, Levels]:
    """Of each of these cells, each bucket that has limits and each contract in force, as what has ended left them. Three queries for all."""
    charged: dict[str, _CellCharges] = defaultdict(_CellCharges)
    for row in _ended_lately(connection, list(rates_by_cell), now_ms):
        charged[row.cell].add(row)
    table = limits.table_of(connection, {who for each in charged.values() for who, _, _ in each.buckets})
    return {
        cell: [
            *_bucket_levels(cell, charged.get(cell, _CellCharges()), table, now_ms),
            *_contract_levels(cell, charged.get(cell, _CellCharges()), rates, now_ms),
        ]
        for cell, rates in rates_by_cell.items()
    }


def _bucket_levels(cell: str, charged: _CellCharges, table: limits.Table, now_ms: int) -> Iterator[BucketLevel]:
    for (who, key_id, model), charges in charged.buckets.items():
        limit = table.for_model(who, key_id, model)
        key = (
            redis_keys.tenant_bucket(cell, who, model) if key_id is None else redis_keys.key_bucket(cell, key_id, model)
        )
        levels = [
            (each, level(charges.of(each.kind), each.amount / (each.window_s * 1000), now_ms))
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
            0 if rate.spill_mu_s is None else level(charged.spilled.get(rate.tenant, ()), spill_per_ms, now_ms),
        )


def level(charges: Sequence[Charge], drains_per_ms: float, now_ms: int) -> float:
    """A leaky bucket now, after these charges."""
    held, before = 0.0, 0.0
    for at, amount in sorted(charges):
        held = max(0.0, held - drains_per_ms * (at - before)) + amount
        before = at
    return max(0.0, held - drains_per_ms * max(0.0, now_ms - before))


def _ended_lately(connection: Connection, cells: Sequence[str], now_ms: int) -> Iterator[Row[Any]]:
    """What ended in these cells of late. Tenant by tenant, as the index goes: the whole table is long."""
    theirs = (
        select(usage_event)
        .where(usage_event.c.tenant == tenant.c.tenant_id, usage_event.c.ended_ms > now_ms - _WINDOW_MS)
        .lateral()
    )
    these = any_(literal(cells, ARRAY(Text)))
    query = select(theirs).select_from(tenant.join(theirs, true())).where(theirs.c.cell == these)
    return iter(connection.execute(query))


def _work(row: Row[Any]) -> Iterator[Charge]:
    """The prompt when it was admitted, the output as it streamed."""
    admitted_ms = row.started_ms + row.waited_ms
    output_mu = min(row.units_mu, row.weights["w_out_mu"] * row.produced_output)
    begun_ms = row.first_token_ms or admitted_ms
    slices = max(1, -(-(row.ended_ms - begun_ms) // _SLICE_MS))
    each = (
        (begun_ms + (row.ended_ms - begun_ms) * (number + 1) / slices, output_mu / slices) for number in range(slices)
    )
    return chain([(admitted_ms, row.units_mu - output_mu)], each)
