"""What the machines of a pool cost, draw and are for, in dated versions. It owns the rows of
`machine_terms`, which never change: a mistake is mended by another version from the same moment.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select

from billing.catalogue import pools
from billing.page import Order, Page, PageRequest, read_page
from billing.reclaims.store import Use
from billing.refusals import Invalid
from billing.schema.capacity import machine_terms as table


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTerms:
    """Of each machine of a pool from `from_ms` on. The cost is of an hour, all in. `watts` without the
    overhead. None: not known; of the use: as the pool's models say.
    """

    pool: str
    from_ms: int
    cost_picousd_hour: int | None = None
    watts: int | None = None
    overhead_permille: int = 1000
    gpus: int | None = None
    use: Use | None = None
    entry: int = 0
    created_ms: int = 0


_OLDEST_FIRST: Final[Order[MachineTerms]] = Order(
    "machines",
    lambda terms: (terms.pool, terms.from_ms, terms.entry),
    (str, int, int),
    (table.c.pool, table.c.from_ms, table.c.entry),
)


def add(connection: Connection, pool: str, from_ms: int, **given: Any) -> MachineTerms:
    """A version from this moment on; what is not given stays as it was then. Raises NotFound, Invalid."""
    pools.lock(connection, pool)
    if not given:
        raise Invalid("What do they cost, draw or have, or what are they for?", param="usd_per_hour")
    before = at(of_pool(connection, pool), from_ms) or MachineTerms(pool=pool, from_ms=from_ms)
    made = replace(before, from_ms=from_ms, **given)
    values = asdict(made)
    del values["entry"], values["created_ms"]
    return _read(connection.execute(insert(table).values(values).returning(table)).one())


def of_pool(connection: Connection, pool: str) -> list[MachineTerms]:
    """The versions of a pool by time; of those from one moment the one that holds comes last."""
    query = select(table).where(table.c.pool == pool).order_by(table.c.from_ms, table.c.entry)
    return [_read(row) for row in connection.execute(query)]


def at(versions: Sequence[MachineTerms], moment_ms: int) -> MachineTerms | None:
    """The one that holds then; None before the first."""
    begun = [each for each in versions if each.from_ms <= moment_ms]
    return begun[-1] if begun else None


def list_page(connection: Connection, asked: PageRequest, pool: str | None) -> Page[MachineTerms]:
    """All versions, by pool and time."""
    query = select(table)
    if pool is not None:
        query = query.where(table.c.pool == pool)
    return read_page(connection, query, _OLDEST_FIRST, _read, asked)


def _read(row: Row[Any]) -> MachineTerms:
    cost = row.cost_picousd_hour
    return MachineTerms(**{**row._mapping, "cost_picousd_hour": None if cost is None else int(cost)})
