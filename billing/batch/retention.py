"""Deletes what is not kept any longer: files whose time is over, files that their owners deleted, uploads
that were never completed, and batches of which nothing is left.
"""

import logging
from typing import Final

from sqlalchemy import Engine, delete, exists, func, select, update

from billing.batch import file_rows, line_rows
from billing.batch.batch_rows import DELETED
from billing.batch.objects import Objects
from billing.schema.batches import batch, batch_file, batch_line, batch_part, line_bill
from billing.schema.clock import NOW_MS
from billing.wire.batch_statuses import OPEN_STATUSES

log = logging.getLogger(__name__)

_FILES_AT_A_TIME: Final = 100
# An upload that has taken longer is not completed any more.
_UPLOAD_MS: Final = 3 * 3_600_000
_TORN_S: Final = 3 * 3_600.0
# Batches are shown for so long after they were created; their files may be kept for less.
_BATCH_MS: Final = 60 * 86_400_000


def sweep(engine: Engine, objects: Objects) -> int:
    """Delete what is due; returns how many files and batches that was."""
    _let_expire(engine)
    done = 0
    while (deleted := _delete_files(engine, objects)) > 0:
        done += deleted
    done += _delete_batches(engine, objects)
    objects.remove_torn(_TORN_S)
    with engine.begin() as connection:
        line_rows.forget_runners(connection)
        connection.execute(delete(line_bill).where(line_bill.c.created_ms < NOW_MS - 2 * _BATCH_MS))
    if done:
        log.info("%d files and batches were deleted", done)
    return done


def _let_expire(engine: Engine) -> None:
    in_use = exists(
        select(batch.c.batch_id).where(
            batch.c.input_file == batch_file.c.file_id, batch.c.status.in_(OPEN_STATUSES)
        )
    )
    over = (batch_file.c.state == "ready") & (batch_file.c.expires_ms <= NOW_MS) & ~in_use
    torn = (batch_file.c.state == "uploading") & (batch_file.c.created_ms < NOW_MS - _UPLOAD_MS)
    with engine.begin() as connection:
        connection.execute(update(batch_file).where(over | torn).values(state="deleting"))


def _delete_files(engine: Engine, objects: Objects) -> int:
    """Objects first: a row that is left is found again."""
    with engine.begin() as connection:
        query = select(batch_file).where(batch_file.c.state == "deleting").limit(_FILES_AT_A_TIME)
        rows = connection.execute(query.with_for_update(skip_locked=True)).all()
        for row in rows:
            objects.delete(file_rows.objects_of(connection, row))
            if row.batch_id is not None:
                parts = (batch_part.c.batch_id == row.batch_id) & (batch_part.c.kind == row.kind)
                connection.execute(delete(batch_part).where(parts))
            connection.execute(delete(batch_file).where(batch_file.c.file_id == row.file_id))
        return len(rows)


def _delete_batches(engine: Engine, objects: Objects) -> int:
    """Those that were deleted, or ended long ago, once their files are gone."""
    with_files = exists(select(batch_file.c.file_id).where(batch_file.c.batch_id == batch.c.batch_id))
    gone = func.coalesce(batch.c.outcome, "") == DELETED
    old = batch.c.created_ms < NOW_MS - _BATCH_MS
    with engine.begin() as connection:
        query = select(batch.c.batch_id).where(
            (gone | old) & ~with_files & batch.c.status.not_in(OPEN_STATUSES)
        )
        ids = (
            connection.execute(query.limit(_FILES_AT_A_TIME).with_for_update(skip_locked=True))
            .scalars()
            .all()
        )
        for batch_id in ids:
            objects.delete(objects.names(f"parts/{batch_id}/"))
        for table in (batch_part, batch_line, batch):
            connection.execute(delete(table).where(table.c.batch_id.in_(ids)))
        return len(ids)
