"""Batches in SQL: created, found, listed, cancelled, deleted by callers. It owns the rows of `batch` but for
the steps between their statuses (`billing.batches`); lines are in `line_rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, func, insert, select, update

from billing.batch.file_rows import owned_by
from billing.batch.refusals import NO_BATCH, NotThere, Refused
from billing.schema.batches import batch, batch_file
from billing.schema.clock import NOW_MS, database_now_ms
from billing.wire.batch_caller import BatchCaller
from billing.wire.batch_statuses import OPEN_STATUSES
from billing.wire.routes import Dialect, Route

_PREFIX: Final = {Dialect.OPENAI: "batch", Dialect.ANTHROPIC: "msgbatch"}
DELETED: Final = "deleted"
# Of a tenant.
_OPEN_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch as it is asked for. `window_s`: how long it may take."""

    dialect: Dialect
    input_file: str
    route: Route
    window_s: int
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None


def create(connection: Connection, caller: BatchCaller, new: NewBatch) -> str:
    """A batch whose lines were not read yet: its id. The random part is that of its lines' request ids.
    Raises Refused if too many are open.
    """
    opened = select(func.count()).where(batch.c.tenant_id == caller.tenant, batch.c.status.in_(OPEN_STATUSES))
    if connection.execute(opened).scalar_one() >= _OPEN_MAX:
        message = f"You have {_OPEN_MAX} batches that have not ended, and may have no more."
        raise Refused(message, code="too_many_batches")
    batch_id = f"{_PREFIX[new.dialect]}_{token_hex(8)}"
    now_ms = database_now_ms(connection)
    row = {
        "batch_id": batch_id,
        "dialect": new.dialect.value,
        "tenant_id": caller.tenant,
        "project": caller.project,
        "key_id": caller.key_id,
        "input_file": new.input_file,
        "route": new.route.value,
        "metadata": new.metadata,
        "output_expires_s": new.output_expires_s,
        "status": "validating",
        "created_ms": now_ms,
        "expires_ms": now_ms + new.window_s * 1000,
    }
    connection.execute(insert(batch).values(row))
    return batch_id


def find(connection: Connection, caller: BatchCaller, dialect: Dialect, batch_id: str) -> Row[Any]:
    """Raises NotThere."""
    query = select(batch).where(batch.c.batch_id == batch_id, _shown(caller, dialect))
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotThere(NO_BATCH)
    return row


def list_page(
    connection: Connection,
    caller: BatchCaller,
    dialect: Dialect,
    *,
    limit: int,
    after: str | None = None,
    before: str | None = None,
) -> Sequence[Row[Any]]:
    """Up to `limit` + 1 batches, the newest first: the next ones after a batch, or the last ones before it,
    the nearest first. Raises NotThere if there is no such batch.
    """
    query = select(batch).where(_shown(caller, dialect))
    place = (batch.c.created_ms, batch.c.batch_id)
    if (mark_id := after or before) is not None:
        mark = find(connection, caller, dialect, mark_id)
        here, there = func.row(*place), func.row(mark.created_ms, mark.batch_id)
        query = query.where(here < there if after else here > there)
    forward = after is not None or before is None
    order = [column.desc() if forward else column.asc() for column in place]
    return connection.execute(query.order_by(*order).limit(limit + 1)).all()


def delete(connection: Connection, caller: BatchCaller, dialect: Dialect, batch_id: str) -> None:
    """From now on it is not there; what is stored of it is deleted soon. Raises NotThere; Refused before it
    has ended.
    """
    if find(connection, caller, dialect, batch_id).status in OPEN_STATUSES:
        raise Refused("This batch has not ended: cancel it first.", code="batch_not_ended")
    row = connection.execute(
        update(batch).where(batch.c.batch_id == batch_id).values(outcome=DELETED).returning(batch)
    ).one()
    files = (batch_file.c.file_id == row.input_file) | (batch_file.c.batch_id == batch_id)
    connection.execute(update(batch_file).where(files).values(state="deleting"))


def open_batches(connection: Connection) -> Sequence[Row[Any]]:
    """Those that have not ended, the oldest first, with the time."""
    query = select(batch, NOW_MS.label("now_ms")).where(batch.c.status.in_(OPEN_STATUSES))
    return connection.execute(query.order_by(batch.c.created_ms)).all()


def _shown(caller: BatchCaller, dialect: Dialect) -> Any:
    shown = func.coalesce(batch.c.outcome, "") != DELETED
    return and_(owned_by(batch, caller), batch.c.dialect == dialect.value, shown)
