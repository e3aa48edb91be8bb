"""Files in SQL: whose they are, what state they are in, and which objects they consist of. It owns the rows
of `batch_file`; what the objects hold is never read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, func, insert, select, update

from billing.batch.objects import input_object
from billing.batch.refusals import NO_FILE, NotThere, Refused
from billing.schema.batches import batch, batch_file, batch_part
from billing.schema.clock import NOW_MS, database_now_ms
from billing.wire.batch_caller import BatchCaller
from billing.wire.batch_statuses import OPEN_STATUSES

# Of a tenant.
_FILES_MAX: Final = 10_000
SHOWN_PURPOSES: Final = ("batch", "batch_output")


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file before it is there. `expires_s`: how long it is kept."""

    purpose: str
    filename: str
    expires_s: int


def owned_by(table: Table, caller: BatchCaller) -> ColumnElement[bool]:
    """The rows that this caller may know of: those of its project, or what it has made itself."""
    own = and_(table.c.tenant_id == caller.tenant, table.c.project == caller.project)
    return and_(own, table.c.key_id == caller.key_id) if caller.restricted else own


def begin_upload(connection: Connection, caller: BatchCaller, new: NewFile, *, tenant_bytes_max: int) -> str:
    """A file that is being uploaded: its id. Raises Refused if the tenant has stored too much already."""
    query = select(func.count(), func.coalesce(func.sum(batch_file.c.bytes), 0)).where(
        batch_file.c.tenant_id == caller.tenant
    )
    count, size_bytes = connection.execute(query).one()
    if count >= _FILES_MAX or size_bytes >= tenant_bytes_max:
        message = f"You have {count} files of {size_bytes} bytes, and may have {_FILES_MAX} of "
        raise Refused(f"{message}{tenant_bytes_max}: delete some first.", code="storage_full")
    file_id = f"file-{token_hex(16)}"
    row = _row(connection, file_id, new) | {"state": "uploading"} | _owner(caller)
    connection.execute(insert(batch_file).values(row))
    return file_id


def finish_upload(connection: Connection, file_id: str, size_bytes: int, new: NewFile) -> None:
    """All of it is stored."""
    values = {
        "purpose": new.purpose,
        "filename": new.filename,
        "expires_ms": batch_file.c.created_ms + new.expires_s * 1000,
        "state": "ready",
        "bytes": size_bytes,
    }
    connection.execute(update(batch_file).where(batch_file.c.file_id == file_id).values(values))


def give_up_upload(connection: Connection, file_id: str) -> None:
    """It will not be completed: what there is of it is deleted soon. One that was completed stays, whatever
    became of its caller: the answer that names it is kept.
    """
    unfinished = (batch_file.c.file_id == file_id) & (batch_file.c.state == "uploading")
    connection.execute(update(batch_file).where(unfinished).values(state="deleting"))


def add_output(
    connection: Connection, owner: dict[str, Any], batch_id: str, kind: str, new: NewFile
) -> str | None:
    """The file of what a batch has made of this kind; None if that is nothing. `owner`: of the batch."""
    query = select(func.sum(batch_part.c.bytes)).where(
        batch_part.c.batch_id == batch_id, batch_part.c.kind == kind
    )
    size_bytes = connection.execute(query).scalar_one()
    if size_bytes is None:
        return None
    file_id = f"file-{token_hex(16)}"
    row = _row(connection, file_id, new) | owner
    row |= {"state": "ready", "bytes": int(size_bytes), "batch_id": batch_id, "kind": kind}
    connection.execute(insert(batch_file).values(row))
    return file_id


def find(connection: Connection, caller: BatchCaller, file_id: str) -> Row[Any]:
    """A file that callers see. Raises NotThere."""
    query = select(batch_file).where(
        batch_file.c.file_id == file_id,
        batch_file.c.purpose.in_(SHOWN_PURPOSES),
        _there(),
        owned_by(batch_file, caller),
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotThere(NO_FILE)
    return row


def list_page(
    connection: Connection,
    caller: BatchCaller,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    ascending: bool,
) -> Sequence[Row[Any]]:
    """Up to `limit` + 1 files, by their age. Raises NotThere if there is no file `after`."""
    place = (batch_file.c.created_ms, batch_file.c.file_id)
    query = select(batch_file).where(
        batch_file.c.purpose.in_(SHOWN_PURPOSES), _there(), owned_by(batch_file, caller)
    )
    if purpose is not None:
        query = query.where(batch_file.c.purpose == purpose)
    if after is not None:
        mark = find(connection, caller, after)
        here, there = func.row(*place), func.row(mark.created_ms, mark.file_id)
        query = query.where(here > there if ascending else here < there)
    order = [column.asc() if ascending else column.desc() for column in place]
    return connection.execute(query.order_by(*order).limit(limit + 1)).all()


def delete(connection: Connection, caller: BatchCaller, file_id: str) -> None:
    """From now on it is not there; its objects are deleted soon. Raises NotThere; Refused while a batch
    reads it.
    """
    find(connection, caller, file_id)
    used = select(batch.c.batch_id).where(batch.c.input_file == file_id, batch.c.status.in_(OPEN_STATUSES))
    if connection.execute(used.limit(1)).one_or_none() is not None:
        raise Refused("A batch that has not ended reads this file: cancel it first.", code="file_in_use")
    connection.execute(update(batch_file).where(batch_file.c.file_id == file_id).values(state="deleting"))


def results_of(connection: Connection, batch_id: str) -> Sequence[Row[Any]]:
    """The files of what a message batch has made: what succeeded, then what did not."""
    query = select(batch_file).where(batch_file.c.batch_id == batch_id, _there())
    return connection.execute(query.order_by(batch_file.c.kind.desc())).all()


def objects_of(connection: Connection, row: Row[Any]) -> list[str]:
    """The names of the objects that a file consists of, in their order."""
    if row.batch_id is None:
        return [input_object(row.file_id)]
    return parts_of(connection, row.batch_id, (row.kind,))


def parts_of(connection: Connection, batch_id: str, kinds: Sequence[str]) -> list[str]:
    """The names of a batch's parts of these kinds."""
    query = (
        select(batch_part.c.object)
        .where(batch_part.c.batch_id == batch_id, batch_part.c.kind.in_(kinds))
        .order_by(batch_part.c.part_id)
    )
    return list(connection.execute(query).scalars())


def _there() -> ColumnElement[bool]:
    return and_(batch_file.c.state == "ready", batch_file.c.expires_ms > NOW_MS)


def _row(connection: Connection, file_id: str, new: NewFile) -> dict[str, Any]:
    # Read once: callers see both moments, in whole seconds, and their difference.
    now_ms = database_now_ms(connection)
    return {
        "file_id": file_id,
        "purpose": new.purpose,
        "filename": new.filename,
        "created_ms": now_ms,
        "expires_ms": now_ms + new.expires_s * 1000,
    }


def _owner(caller: BatchCaller) -> dict[str, Any]:
    return {"tenant_id": caller.tenant, "project": caller.project, "key_id": caller.key_id}
