"""Changes that are still to be written to Redis: rows of the transaction that changed the catalogue, removed
once Redis has them.

It owns the rows of `projection_outbox`. It knows neither what is written to Redis nor Redis itself.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import BigInteger, Connection, delete, func, insert, select

from billing.schema.any_of import any_of
from billing.schema.catalogue import projection_outbox


class ChangeKind(StrEnum):
    """What changed. The subject is its id; a model's name; for `drain` an instance that a reclaim takes or
    has given back; for `stop` what gateways are to stop.
    """

    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"
    INSTANCE = "instance"
    DRAIN = "drain"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class CatalogueChange:
    """One row of the outbox."""

    change_id: int
    kind: ChangeKind
    subject: str


def record(connection: Connection, kind: ChangeKind, subject: str) -> None:
    """Note in the caller's transaction that this has changed."""
    connection.execute(insert(projection_outbox).values(kind=kind.value, subject=subject))


def pending(connection: Connection, count_max: int) -> list[CatalogueChange]:
    """The oldest changes that are not in Redis yet."""
    rows = connection.execute(
        select(projection_outbox).order_by(projection_outbox.c.change_id).limit(count_max)
    )
    return [CatalogueChange(row.change_id, ChangeKind(row.kind), row.subject) for row in rows]


def count(connection: Connection) -> int:
    """How many changes are not in Redis yet."""
    return connection.execute(select(func.count()).select_from(projection_outbox)).scalar_one()


def done(connection: Connection, changes: list[CatalogueChange]) -> None:
    """Delete exactly these: a slower transaction may still commit a smaller id."""
    if changes:
        ids = [change.change_id for change in changes]
        these = any_of(ids, BigInteger())
        connection.execute(delete(projection_outbox).where(projection_outbox.c.change_id == these))
