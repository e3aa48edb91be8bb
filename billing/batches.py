"""Batches as billing and the batch service both know them: listed, found, cancelled. It owns the steps that
both may take between the statuses of a batch; files and lines are the batch service's.
"""

from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, update

from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, NotFound
from billing.schema.batches import batch
from billing.schema.clock import NOW_MS

# Statuses in which nothing has ended yet. `finalizing`: the last lines are under way, none is begun.
_CANCELLABLE: Final = ("validating", "in_progress")
_NEWEST_FIRST: Final[Order[Row[Any]]] = Order(
    "batches",
    lambda row: (row.created_ms, row.batch_id),
    (int, str),
    (batch.c.created_ms, batch.c.batch_id),
    descending=True,
)


def advance(connection: Connection, batch_id: str, status: str, **columns: Any) -> None:
    """Bring it to a status, and note when."""
    times = batch.c.times.concat(func.jsonb_build_object(status, NOW_MS))
    change = update(batch).where(batch.c.batch_id == batch_id)
    connection.execute(change.values(status=status, times=times, **columns))


def cancel(connection: Connection, batch_id: str) -> Row[Any]:
    """Begin no further line. What is under way is completed, delivered and billed. Raises NotFound; Conflict
    if it has ended.
    """
    query = select(batch).where(batch.c.batch_id == batch_id)
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise _unknown(batch_id)
    if row.status in _CANCELLABLE:
        advance(connection, batch_id, "cancelling", outcome="cancelled")
    elif row.status != "cancelling":
        message = f"Cannot cancel a batch with status '{row.status}'."
        raise Conflict(message, param="batch", code="batch_not_cancellable")
    return connection.execute(query).one()


def find(connection: Connection, batch_id: str, *, tenant_id: str | None = None) -> Row[Any]:
    """Whosever it is, or only one of this tenant. Raises NotFound."""
    row = connection.execute(select(batch).where(batch.c.batch_id == batch_id)).one_or_none()
    if row is None or tenant_id not in {None, row.tenant_id}:
        raise _unknown(batch_id)
    return row


def list_page(
    connection: Connection, asked: PageRequest, *, tenant_id: str | None, status: str | None
) -> Page[Row[Any]]:
    """Batches of a tenant or of all, in this status or in any, the newest first."""
    query = select(batch)
    if tenant_id is not None:
        query = query.where(batch.c.tenant_id == tenant_id)
    if status is not None:
        query = query.where(batch.c.status == status)
    return read_page(connection, query, _NEWEST_FIRST, lambda row: row, asked)


def _unknown(batch_id: str) -> NotFound:
    return NotFound(f"There is no batch {batch_id!r}; `taas batch list` shows those that are.", param="batch")
