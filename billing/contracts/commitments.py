"""What a pool has and owes, read from SQL, and the only way to change the pool itself. Code that takes
machines reads it with `lock_position`, code that sells or measures with `lock_for_sale`, so that of two at
once the second sees what the first did.
"""

from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, or_, select

from billing.catalogue import pools
from billing.catalogue.pools import Pool
from billing.contracts import store
from billing.contracts.position import Holding, Position, Taken, refuse_worse
from billing.contracts.timeline import FOREVER_MS
from billing.refusals import Conflict, Invalid
from billing.schema.capacity import calibration, reclaim

INSTANCES_MAX: Final = 1_000_000
SET_ASIDE_MU_S_MAX: Final = 10**15


def read_position(connection: Connection, pool: str, from_ms: int) -> Position:
    """The pool from this moment on, without what had ended by then. Raises NotFound."""
    return _position(connection, pools.find(connection, pool), from_ms)


def lock_position(connection: Connection, pool: str, from_ms: int) -> Position:
    """Like `read_position`, and nobody else sells, takes or measures there until the transaction ends."""
    return _position(connection, pools.lock(connection, pool), from_ms)


def read_for_sale(connection: Connection, pool: str, from_ms: int) -> Position:
    """Like `read_position`, without the machines that drain: they take nothing new, and are gone from their
    deadline on.
    """
    return read_position(connection, pool, from_ms).serving(from_ms)


def lock_for_sale(connection: Connection, pool: str, from_ms: int) -> Position:
    """Like `read_for_sale`, locked as by `lock_position`."""
    return lock_position(connection, pool, from_ms).serving(from_ms)


def require_calibration(position: Position) -> None:
    """Raises Conflict for a pool without a calibration: it is not sold."""
    if position.capacity_mu_s is None:
        message = (
            f"Pool {position.pool!r} has not been measured; calibrate first: `taas calibrate "
            f"{position.pool}`."
        )
        raise Conflict(message, param="pool", code="not_calibrated")


def change_pool(
    connection: Connection,
    pool: str,
    *,
    now_ms: int,
    instances: int | None = None,
    headroom_permille: int | None = None,
    set_aside_mu_s: int | None = None,
) -> Pool:
    """Set what is given. Raises Invalid, NotFound; Conflict if it would break what is signed. Then nothing
    has changed.
    """
    before = lock_for_sale(connection, pool, now_ms)
    wanted = Pool(
        pool,
        before.instances if instances is None else instances,
        before.headroom_permille if headroom_permille is None else headroom_permille,
        before.set_aside_mu_s if set_aside_mu_s is None else set_aside_mu_s,
    )
    if not 0 <= wanted.instances <= INSTANCES_MAX:
        raise Invalid(f"A pool has 0 to {INSTANCES_MAX} instances.", param="instances")
    if not 0 <= wanted.headroom_permille <= 999:
        raise Invalid("Headroom is a part of the capacity: 0 or more, less than 1.", param="headroom")
    if not 0 <= wanted.set_aside_mu_s <= SET_ASIDE_MU_S_MAX:
        raise Invalid("What is set aside is 0 or more, and less than any pool does.", param="set_aside")
    after = replace(
        before,
        instances=wanted.instances,
        headroom_permille=wanted.headroom_permille,
        set_aside_mu_s=wanted.set_aside_mu_s,
    )
    refuse_worse(before, after, now_ms, what="What is signed")
    pools.write(connection, wanted, now_ms)
    return wanted


def _position(connection: Connection, pool: Pool, from_ms: int) -> Position:
    newest = select(calibration.c.capacity_mu_s).where(calibration.c.pool == pool.pool)
    newest = newest.order_by(calibration.c.created_ms.desc(), calibration.c.calibration_id.desc()).limit(1)
    holding = store.list_all(connection, pool=pool.pool, states=store.BINDING, ends_after_ms=from_ms)
    return Position(
        pool=pool.pool,
        instances=pool.instances,
        headroom_permille=pool.headroom_permille,
        set_aside_mu_s=pool.set_aside_mu_s,
        capacity_mu_s=connection.execute(newest).scalar_one_or_none(),
        holdings=tuple(Holding.of(contract) for contract in holding),
        taken=_taken(connection, pool.pool, from_ms),
    )


def _taken(connection: Connection, pool: str, from_ms: int) -> tuple[Taken, ...]:
    rows = connection.execute(
        select(reclaim).where(
            reclaim.c.pool == pool,
            reclaim.c.state.in_(("planned", "draining", "done")),
            or_(reclaim.c.released_ms.is_(None), reclaim.c.released_ms > from_ms),
        )
    )
    return tuple(
        Taken(
            row.instances,
            row.by_ms,
            FOREVER_MS if row.released_ms is None else row.released_ms,
            drains=row.state == "draining",
        )
        for row in rows
    )
