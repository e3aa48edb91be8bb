"""Reads the lines of a new batch, and lets the batch begin or fail: each line is checked before any is sent.

It owns the step from `validating`. The input is read in a thread, piece by piece.
"""

import logging
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update

from billing.batch import line_rows
from billing.batch.acceptance import NotAccepted, accept
from billing.batch.objects import Objects, input_object
from billing.batch.settings import BatchSettings
from billing.batch.splitting import split_jsonl, split_requests
from billing.batch.validation import Checked, LineError, check
from billing.batches import advance
from billing.schema.batches import batch, batch_runner
from billing.schema.clock import NOW_MS
from billing.wire.routes import ROUTE_FACTS, Dialect, Route

log = logging.getLogger(__name__)


def read_input(objects: Objects, settings: BatchSettings, input_file: str, route: Route) -> Checked:
    """Check all lines of a file. Raises NotRequests for a message batch's body that is none."""
    facts = ROUTE_FACTS[route]
    split = split_requests if facts.dialect is Dialect.ANTHROPIC else split_jsonl
    pieces = objects.read(input_object(input_file))
    lines = split(pieces, settings.line_bytes_max)
    return check(lines, facts, settings.line_bytes_max)


def begin(connection: Connection, row: Row[Any], checked: Checked, settings: BatchSettings) -> None:
    """Let a batch whose lines are right begin. Raises NotAccepted."""
    facts = ROUTE_FACTS[Route(row.route)]
    estimate = accept(connection, row.tenant_id, row.key_id, facts, checked, settings.window_s)
    line_rows.add_lines(connection, row.batch_id, checked.places, checked.order)
    advance(
        connection, row.batch_id, "in_progress", model=checked.model, total=len(checked.places), runner=None,
        estimate_tokens=estimate.tokens, estimate_mu=estimate.mu,
    )  # fmt: skip


def read_batch(engine: Engine, objects: Objects, settings: BatchSettings, runner: str, batch_id: str) -> None:
    """Read a batch that is `validating`, unless another runner does so."""
    row = _claim(engine, runner, batch_id)
    if row is None:
        return
    try:
        checked = read_input(objects, settings, row.input_file, Route(row.route))
    except FileNotFoundError:
        checked = Checked(errors=[LineError("file_not_found", "The input file was deleted.")])
    with engine.begin() as connection:
        now = line_rows.lock(connection, batch_id)
        if now is None or now.status != "validating" or now.runner != runner:
            return  # it was cancelled, or somebody else has read it
        errors = checked.errors
        if not errors:
            try:
                begin(connection, now, checked, settings)
            except NotAccepted as refused:
                errors = [refused.error]
        if errors:
            _fail(connection, batch_id, checked, errors)


def _claim(engine: Engine, runner: str, batch_id: str) -> Row[Any] | None:
    alive = select(batch_runner.c.runner).where(
        batch_runner.c.runner == batch.c.runner, batch_runner.c.until_ms > NOW_MS
    )
    free = batch.c.runner.is_(None) | (batch.c.runner != runner) & ~alive.exists()
    claimed = (
        update(batch)
        .where(batch.c.batch_id == batch_id, batch.c.status == "validating", free)
        .values(runner=runner)
        .returning(batch)
    )
    with engine.begin() as connection:
        return connection.execute(claimed).one_or_none()


def _fail(connection: Connection, batch_id: str, checked: Checked, errors: list[LineError]) -> None:
    shown = [error.to_json() for error in errors]
    advance(connection, batch_id, "failed", errors=shown, total=len(checked.places), runner=None)
    log.info("batch %s failed: %d errors in its input", batch_id, len(errors))
