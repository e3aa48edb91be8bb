"""Ends batches: when one has no line left to serve, or was cancelled, or has expired. What was answered until
then is delivered. It owns the steps from `in_progress` on.
"""

import logging
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, delete, func, select

from billing.batch import file_rows, line_rows
from billing.batch.answers import unserved_line
from billing.batch.file_rows import NewFile
from billing.batch.line_states import LineState
from billing.batch.objects import Objects, input_object
from billing.batch.settings import BatchSettings
from billing.batch.validation import read_line
from billing.batches import advance
from billing.schema.batches import batch_line
from billing.wire.routes import ROUTE_FACTS, Dialect, Route

log = logging.getLogger(__name__)

# Lines of an error file that are written as one part.
_LINES_A_PART: Final = 1_000


def advance_batch(engine: Engine, objects: Objects, settings: BatchSettings, batch_id: str) -> None:
    """One step towards the end of an open batch, if it is due."""
    with engine.begin() as connection:
        row = line_rows.lock(connection, batch_id)
        if row is None:
            return
        under_way = line_rows.left(connection, batch_id, LineState.RUNNING, LineState.LOST)
        if row.status == "in_progress":
            if row.now_ms >= row.expires_ms:
                advance(connection, batch_id, "finalizing", outcome="expired")
            elif not under_way and not line_rows.left(connection, batch_id, LineState.PENDING):
                advance(connection, batch_id, "finalizing", outcome="completed")
            return
        if row.status == "validating":
            if row.now_ms >= row.expires_ms:
                advance(connection, batch_id, "finalizing", outcome="expired")
            return
        if row.status not in {"cancelling", "finalizing"} or under_way:
            return
        _end(connection, objects, settings, row)


def _end(connection: Connection, objects: Objects, settings: BatchSettings, row: Row[Any]) -> None:
    unserved = _write_unserved(connection, objects, row)
    _drop_unnamed(connection, objects, row.batch_id)
    anthropic = row.dialect == Dialect.ANTHROPIC
    purpose = "results" if anthropic else "batch_output"
    owner = {name: getattr(row, name) for name in ("tenant_id", "project", "key_id")}
    files = {}
    for kind in ("output", "error"):
        name = f"{row.batch_id}_{kind}.jsonl"
        new = NewFile(purpose, name, row.output_expires_s or settings.retention_s)
        files[f"{kind}_file"] = file_rows.add_output(connection, owner, row.batch_id, kind, new)
    connection.execute(delete(batch_line).where(batch_line.c.batch_id == row.batch_id))
    advance(connection, row.batch_id, row.outcome, unserved=unserved, **files)
    log.info(
        "batch %s %s: %d answered, %d failed, %d not served",
        row.batch_id, row.outcome, row.completed, row.failed, unserved,
    )  # fmt: skip


def _write_unserved(connection: Connection, objects: Objects, row: Row[Any]) -> int:
    """A line in the error file for each that was not served; how many."""
    query = select(func.count()).where(batch_line.c.batch_id == row.batch_id, _unserved())
    count = connection.execute(query).scalar_one()
    if count:
        texts: list[bytes] = []
        for text in _unserved_texts(connection, objects, row):
            texts.append(text)
            if len(texts) == _LINES_A_PART:
                line_rows.write_part(connection, objects, row.batch_id, "error", texts)
                texts = []
        line_rows.write_part(connection, objects, row.batch_id, "error", texts)
    return count


def _unserved_texts(connection: Connection, objects: Objects, row: Row[Any]) -> Iterator[bytes]:
    facts = ROUTE_FACTS[Route(row.route)]
    query = select(batch_line).where(batch_line.c.batch_id == row.batch_id, _unserved())
    name = input_object(row.input_file)
    lines = connection.execute(query.order_by(batch_line.c.start)).all()
    places = ((line.start, line.length) for line in lines)
    for line, text in zip(lines, objects.read_places(name, places), strict=True):
        custom_id, _ = read_line(text, facts)
        yield unserved_line(facts.dialect, custom_id, f"{row.batch_id}_{line.line}", row.outcome)


def _unserved() -> Any:
    return batch_line.c.state == LineState.PENDING


def _drop_unnamed(connection: Connection, objects: Objects, batch_id: str) -> None:
    """Delete parts that a runner wrote and then died, before they were recorded."""
    named = set(file_rows.parts_of(connection, batch_id, ("output", "error")))
    objects.delete([name for name in objects.names(f"parts/{batch_id}/") if name not in named])
