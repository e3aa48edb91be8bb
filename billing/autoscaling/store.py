"""The rows of pools that are scaled: the operator's bounds, and what was decided last. It decides nothing."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.autoscaling.decide import Bounds, Decision, Why
from billing.catalogue import models, outbox
from billing.catalogue.outbox import ChangeKind
from billing.contracts.commitments import read_position
from billing.refusals import Invalid, NotFound
from billing.schema.capacity import autoscaling as table
from billing.schema.clock import NOW_MS


@dataclass(frozen=True, slots=True)
class Scaled:
    """A pool that is scaled. `decision`: None until the first round."""

    pool: str
    bounds: Bounds
    decision: Decision | None
    decided_ms: int | None


def put(connection: Connection, pool: str, bounds: Bounds) -> Scaled:
    """Scale this pool within these bounds. Raises NotFound for the pool, Invalid for bounds that it cannot
    have.
    """
    position = read_position(connection, pool, connection.scalar(select(NOW_MS)) or 0)
    if bounds.least > bounds.most:
        raise Invalid(f"The minimum ({bounds.least}) is more than the maximum ({bounds.most}).", param="min")
    if 0 < position.instances < bounds.most:
        raise Invalid(
            f"Pool {pool!r} has {position.instances} instances in all; declare more with `taas pool set "
            f"{pool} --instances N`.",
            param="max",
        )
    values = {"pool": pool, "least": bounds.least, "most": bounds.most}
    connection.execute(
        insert(table).values(values).on_conflict_do_update(index_elements=["pool"], set_=values)
    )
    _tell_gateways(connection, pool)
    return find(connection, pool)


def remove(connection: Connection, pool: str) -> Scaled:
    """Scale it no more; returns it as it was. Raises NotFound if it is not scaled."""
    row = connection.execute(delete(table).where(table.c.pool == pool).returning(*table.c)).one_or_none()
    if row is None:
        raise _not_scaled(pool)
    _tell_gateways(connection, pool)
    return _scaled(row)


def find(connection: Connection, pool: str) -> Scaled:
    """Raises NotFound if it is not scaled."""
    row = connection.execute(select(table).where(table.c.pool == pool)).one_or_none()
    if row is None:
        raise _not_scaled(pool)
    return _scaled(row)


def list_all(connection: Connection) -> list[Scaled]:
    """By pool."""
    return [_scaled(row) for row in connection.execute(select(table).order_by(table.c.pool))]


def decided(connection: Connection, pool: str, decision: Decision) -> None:
    """Store what was decided now."""
    connection.execute(
        update(table)
        .where(table.c.pool == pool)
        .values(desired=decision.instances, why=decision.why.value, decided_ms=NOW_MS)
    )


def _tell_gateways(connection: Connection, pool: str) -> None:
    """A model's entry says whether its requests may wait for an instance."""
    for name in models.names_in_pool(connection, pool):
        outbox.record(connection, ChangeKind.MODEL, name)


def _scaled(row: Row[Any]) -> Scaled:
    decision = None if row.desired is None else Decision(row.desired, Why(row.why))
    return Scaled(row.pool, Bounds(row.least, row.most), decision, row.decided_ms)


def _not_scaled(pool: str) -> NotFound:
    return NotFound(
        f"Pool {pool!r} is not scaled; `taas pool autoscale {pool} --min N --max N` does that.", param="pool"
    )
