"""After Redis has lost something: what the ledger says that the buckets of a cell must hold, and their raising to it.

A cell says in which run of the server its levels were last held against the ledger. Without that word (Redis was emptied, or began empty) nobody is
admitted there until this has been done; with another run's word (a restart, an older copy, a failover) levels are raised within a second. What is
open is not the ledger's: gateways restore it themselves.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import redis
from sqlalchemy import Connection, Row, select, true

from billing import limits, redis_keys
from billing.allocator.supply import Cell
from billing.cell.execute import execute
from billing.cell.scripts import BucketLevel, ContractLevel, rebuild_call
from billing.contracts.rates import ContractRate
from billing.schema.catalogue import tenant
from billing.schema.ledger import usage_event

# A bucket drains within a minute; what is older counts only where it was in debt.
_WINDOW_MS: Final = 120_000
# How finely the output of a stream is spread over its time; checkpoints charge it twice a second.
_SLICE_MS: Final = 500
# By then each gateway has checkpointed what runs, and so taken its places again.
_RESTORED_MS: Final = 900
_MINUTE_MS: Final = 60_000
# Levels in one script: a few ms of Redis.
_LEVELS_MAX: Final = 1_000

Charge = tuple[float, float]


@dataclass(slots=True)
class _Charges:
    """What one bucket was charged, each (ms, amount): requests, and work in mu."""

    requests: list[Charge] = field(default_factory=list)
    units_mu: list[Charge] = field(default_factory=list)


def run_of(client: redis.Redis) -> str:
    """The run of the server, which changes with every start of it. Raises redis.RedisError."""
    return str(client.info("server")["run_id"])


class Losses:
    """Which cells have lost something, and since when. A cell without a word is given a moment: what runs is to have its place before others come."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def due(self, client: redis.Redis, cell: str, run: str, now_ms: int) -> bool:
        """Whether its levels must be held against the ledger now. Raises redis.RedisError."""
        word = client.get(redis_keys.intact(cell))
        if word is not None or not _gateways(client):
            self._since.pop(cell, None)
            return word != run.encode()
        # Not negative, where the clock went back: then it would wait until the clock is there again.
        if 0 <= now_ms - self._since.setdefault(cell, now_ms) < _RESTORED_MS:
            return False
        del self._since[cell]
        return True


def _gateways(client: redis.Redis) -> list[bytes | str]:
    """The channels of those that listen."""
    found: list[bytes | str] = client.pubsub_channels(redis_keys.wake_channel("*"))
    return found


def rebuild(
    connection: Connection, client: redis.Redis, cell: Cell, rates: Sequence[ContractRate], now_ms: int, run: str
) -> int:
    """Raise every level to what the ledger says, and call the cell whole; returns how many. Their numbers must have been written. Raises
    redis.RedisError, SQLAlchemyError.
    """
    levels = levels_of(connection, cell.cell, rates, now_ms)
    for start in range(0, max(1, len(levels)), _LEVELS_MAX):
        last = start + _LEVELS_MAX >= len(levels)
        execute(client, rebuild_call(cell.cell, run if last else "", levels[start : start + _LEVELS_MAX]))
    # Who waited stands in a line that is gone.
    for channel in _gateways(client):
        client.publish(channel, "*")
    return len(levels)


def levels_of(
    connection: Connection, cell: str, rates: Sequence[ContractRate], now_ms: int
) -> list[BucketLevel | ContractLevel]:
    """Each bucket that has limits, and each contract in force, as what has ended left them."""
    buckets: dict[tuple[str, str | None, str], _Charges] = defaultdict(_Charges)
    used: dict[str, list[Charge]] = defaultdict(list)
    spilled: dict[str, list[Charge]] = defaultdict(list)
    for row in _ended_lately(connection, cell, now_ms):
        work = list(_work(row))
        for key_id in (None, row.key_id):
            charges = buckets[row.tenant, key_id, row.model]
            charges.requests.append((row.started_ms + row.waited_ms, 1))
            # What a contract took is on its own level alone.
            charges.units_mu += work if row.contract is None else ()
        if row.contract is not None:
            used[row.contract] += work
        elif (row.decision or {}).get("why") == "spilled":
            spilled[row.tenant] += work
    table = limits.table_of(connection, {who for who, _, _ in buckets})
    found: list[BucketLevel | ContractLevel] = []
    for (who, key_id, model), charges in buckets.items():
        limit = table.for_model(who, key_id, model)
        if limit.requests < 0 and limit.units_mu < 0:
            continue
        key = (
            redis_keys.tenant_bucket(cell, who, model) if key_id is None else redis_keys.key_bucket(cell, key_id, model)
        )
        requests = level(charges.requests, limit.requests / _MINUTE_MS, now_ms)
        found.append(BucketLevel(key, requests, level(charges.units_mu, limit.units_mu / _MINUTE_MS, now_ms), limit))
    for rate in rates:
        per_ms = rate.mu_s / 1000
        spill_per_ms = (rate.spill_mu_s or 0) / 1000
        found.append(
            ContractLevel(
                redis_keys.contract_bucket(cell, rate.tenant),
                level(used[rate.contract_id], per_ms, now_ms),
                0 if rate.spill_mu_s is None else level(spilled[rate.tenant], spill_per_ms, now_ms),
            )
        )
    return found


def level(charges: Sequence[Charge], drains_per_ms: float, now_ms: int) -> float:
    """A leaky bucket now, after these charges; 0 where nothing limits it."""
    if drains_per_ms < 0:
        return 0.0
    held, before = 0.0, 0.0
    for at, amount in sorted(charges):
        held = max(0.0, held - drains_per_ms * (at - before)) + amount
        before = at
    return max(0.0, held - drains_per_ms * max(0.0, now_ms - before))


def _ended_lately(connection: Connection, cell: str, now_ms: int) -> Iterator[Row[Any]]:
    """What ended in the cell of late. Tenant by tenant, as the index goes: the whole table is long."""
    theirs = (
        select(usage_event)
        .where(usage_event.c.tenant == tenant.c.tenant_id, usage_event.c.ended_ms > now_ms - _WINDOW_MS)
        .lateral()
    )
    query = select(theirs).select_from(tenant.join(theirs, true())).where(theirs.c.cell == cell)
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
