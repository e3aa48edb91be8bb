"""The row of a pool: how many machines it has, how much is kept back, and what that was before. It knows
nothing of what is sold; a change that could break a contract goes through `billing.contracts.commitments`.
"""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.refusals import NotFound
from billing.schema.capacity import HEADROOM_PERMILLE, pool_past
from billing.schema.capacity import pool as table
from billing.schema.catalogue import model


@dataclass(frozen=True, slots=True)
class Pool:
    """`instances`: all of its machines, including those in other use. `set_aside_mu_s`: what the operator
    keeps for itself.
    """

    pool: str
    instances: int = 0
    headroom_permille: int = HEADROOM_PERMILLE
    set_aside_mu_s: int = 0


def find(connection: Connection, pool: str) -> Pool:
    """By name; the defaults where nothing was set. Raises NotFound for a pool that no model has and nobody
    has set.
    """
    row = connection.execute(select(table).where(table.c.pool == pool)).one_or_none()
    if row is not None:
        return Pool(row.pool, row.instances, row.headroom_permille, row.set_aside_mu_s)
    if connection.execute(select(model.c.name).where(model.c.pool == pool).limit(1)).first() is None:
        raise NotFound(f"There is no pool {pool!r}; `taas pool list` shows those that are.", param="pool")
    return Pool(pool)


def require_named(connection: Connection, pool: str | None) -> None:
    """Raises NotFound where a listing names a pool that is none: that nothing is there would mislead."""
    if pool is not None:
        find(connection, pool)


def declared(connection: Connection) -> dict[str, int]:
    """How many instances each pool has of which anything was set; those of which nothing was have none
    yet.
    """
    return {row.pool: row.instances for row in connection.execute(select(table.c.pool, table.c.instances))}


def lock(connection: Connection, pool: str) -> Pool:
    """As `find`, and held until the transaction ends: of all who sell, take or measure in this pool one
    goes at a time.
    """
    found = find(connection, pool)
    connection.execute(
        insert(table)
        .values(
            pool=pool,
            instances=found.instances,
            headroom_permille=found.headroom_permille,
            set_aside_mu_s=found.set_aside_mu_s,
        )
        .on_conflict_do_nothing()
    )
    connection.execute(select(table.c.pool).where(table.c.pool == pool).with_for_update())
    return find(connection, pool)


def write(connection: Connection, pool: Pool, now_ms: int) -> None:
    """The row as it is from now on, in a transaction that holds it; what it was stays on record."""
    before = find(connection, pool.pool)
    if before == pool:
        return
    # Two who wait for the same row may have looked at the clock the other way round.
    last_ms = connection.execute(
        select(func.max(pool_past.c.until_ms)).where(pool_past.c.pool == pool.pool)
    ).scalar_one()
    connection.execute(insert(pool_past).values(**asdict(before), until_ms=max(now_ms, last_ms or 0)))
    connection.execute(
        update(table)
        .where(table.c.pool == pool.pool)
        .values(
            instances=pool.instances,
            headroom_permille=pool.headroom_permille,
            set_aside_mu_s=pool.set_aside_mu_s,
        )
    )


def past(connection: Connection, pool: str) -> list[tuple[int, Pool]]:
    """What it was, each until a moment, oldest first; what `find` says has held since the last of them."""
    rows = connection.execute(select(pool_past).where(pool_past.c.pool == pool).order_by(pool_past.c.entry))
    return [
        (row.until_ms, Pool(row.pool, row.instances, row.headroom_permille, row.set_aside_mu_s))
        for row in rows
    ]
