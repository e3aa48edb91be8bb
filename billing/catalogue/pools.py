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
    """A pool by name, with the defaults if nothing was set. Raises NotFound for a pool that no model has and
    that was never set.
    """
    row = connection.execute(select(table).where(table.c.pool == pool)).one_or_none()
    if row is not None:
        return Pool(row.pool, row.instances, row.headroom_permille, row.set_aside_mu_s)
    if connection.execute(select(model.c.name).where(model.c.pool == pool).limit(1)).first() is None:
        raise NotFound(f"There is no pool {pool!r}; `taas pool list` shows those that are.", param="pool")
    return Pool(pool)


def require_named(connection: Connection, pool: str | None) -> None:
    """Raises NotFound for a pool that does not exist: an empty list would mislead."""
    if pool is not None:
        find(connection, pool)


def declared(connection: Connection) -> dict[str, int]:
    """How many instances each pool was set to have. Other pools have none yet."""
    return {row.pool: row.instances for row in connection.execute(select(table.c.pool, table.c.instances))}


def lock(connection: Connection, pool: str) -> Pool:
    """Like `find`, and locked until the transaction ends: only one at a time sells, takes or measures in this
    pool.
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
    """Set the row, in a transaction that has locked it; its old values are recorded."""
    before = find(connection, pool.pool)
    if before == pool:
        return
    # Two transactions that wait for the same row may have read the clock in the other order.
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
    """The old values, each until a moment, oldest first; the values of `find` hold since the last of them."""
    rows = connection.execute(select(pool_past).where(pool_past.c.pool == pool).order_by(pool_past.c.entry))
    return [
        (row.until_ms, Pool(row.pool, row.instances, row.headroom_permille, row.set_aside_mu_s))
        for row in rows
    ]
