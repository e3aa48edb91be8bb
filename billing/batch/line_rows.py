"""Lines in SQL: claimed by a runner, given back, done. It owns the rows of `batch_line`, `batch_runner` and
`batch_part`, and the rule that only the runner of a line's newest attempt may say what came of it.

A runner lives as long as it renews its lease. Lines that it had under way when it died are lost, and others
claim them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from billing.batch.answers import Usage
from billing.batch.line_states import LineState
from billing.batch.objects import Objects
from billing.ledger.bulk_insert import insert_rows
from billing.ledger.event_days import are_those, recorded
from billing.moments import DAY_MS
from billing.schema.batches import batch, batch_line, batch_part, batch_runner
from billing.schema.clock import NOW_MS
from billing.schema.ledger import usage_event

_ROWS_AT_A_TIME: Final = 5_000
# Lines that were sent, and whose runner is no more, or does not know what came of them.
_LOST: Final = f"""
    (state = {LineState.LOST.value} and not_before_ms <= {NOW_MS})
    or (state = {LineState.RUNNING.value} and not exists (
        select from batch_runner where batch_runner.runner = batch_line.runner and until_ms > {NOW_MS}))
"""
_DUE: Final = f"""
    state = {LineState.PENDING.value} and not_before_ms <= {NOW_MS} and exists (
        select from batch
        where batch.batch_id = :batch_id and status = 'in_progress' and expires_ms > {NOW_MS})
"""
# The array is made once. `in (select …)` may be run again for each line, and claim others each time.
_CLAIM: Final = """
    update batch_line set state = {running}, runner = :runner, attempt = attempt + 1
    where batch_id = :batch_id and line = any(array(
        select line from batch_line where batch_id = :batch_id and ({which})
        order by rank limit :limit for update skip locked))
    returning line, rank, start, length, attempt, failures
"""
_CLAIM_LOST: Final = text(_CLAIM.format(running=LineState.RUNNING.value, which=_LOST))
_CLAIM_DUE: Final = text(_CLAIM.format(running=LineState.RUNNING.value, which=_DUE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a line: its line of the output or of the error file."""

    line: int
    attempt: int
    request_id: str
    kind: str
    text: bytes
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenBack:
    """A line without a result: it is to be sent again, after so long. `lost`: it may have been answered."""

    line: int
    attempt: int
    lost: bool
    wait_ms: int
    failures: int


def renew(connection: Connection, runner: str, lease_s: float) -> None:
    """This runner lives."""
    until = NOW_MS + int(lease_s * 1000)
    row = insert(batch_runner).values(runner=runner, until_ms=until)
    connection.execute(row.on_conflict_do_update(index_elements=["runner"], set_={"until_ms": until}))


def leads(connection: Connection, runner: str) -> bool:
    """Whether it is the first of those that live: it tells what all of them see."""
    query = select(func.min(batch_runner.c.runner)).where(batch_runner.c.until_ms > NOW_MS)
    first: str | None = connection.execute(query).scalar_one()
    return first == runner


def forget_runners(connection: Connection) -> None:
    """Remove those that have been dead for long."""
    connection.execute(batch_runner.delete().where(batch_runner.c.until_ms < NOW_MS - DAY_MS))


def add_lines(
    connection: Connection, batch_id: str, places: Sequence[tuple[int, int]], order: Sequence[int]
) -> None:
    """All lines of a batch. `order`: their numbers as they are to be sent."""
    rows = [
        {
            "batch_id": batch_id,
            "line": line,
            "rank": rank,
            "start": places[line][0],
            "length": places[line][1],
            "state": LineState.PENDING.value,
            "attempt": 0,
            "failures": 0,
            "not_before_ms": 0,
        }
        for rank, line in enumerate(order)
    ]
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        insert_rows(connection, batch_line, rows[start : start + _ROWS_AT_A_TIME])


def claim(
    connection: Connection, batch_id: str, runner: str, limit: int, *, begin: bool
) -> Sequence[Row[Any]]:
    """Up to `limit` lines that are this runner's from now on, in the order in which they are to be sent. Only
    with `begin` any that was not sent before.
    """
    words = {"batch_id": batch_id, "runner": runner, "limit": limit}
    rows = list(connection.execute(_CLAIM_LOST, words))
    if begin and len(rows) < limit:
        rows += connection.execute(_CLAIM_DUE, words | {"limit": limit - len(rows)})
    return sorted(rows, key=lambda row: int(row.rank))


def left(connection: Connection, batch_id: str, *states: LineState) -> int:
    """How many lines are in these states."""
    query = select(func.count()).where(batch_line.c.batch_id == batch_id, batch_line.c.state.in_(states))
    return connection.execute(query).scalar_one()


def record(
    connection: Connection, objects: Objects, runner: str, batch_id: str, results: Sequence[Result]
) -> list[Result]:
    """Write results as parts and mark their lines as done; all or none of it. Returns those that were
    recorded: not those of lines that somebody else has claimed since.
    """
    # In this order everywhere: the batch, then lines.
    if lock(connection, batch_id) is None:
        return []
    held = _held(connection, runner, batch_id, results)
    ours = [result for result in results if held.get(result.line) == result.attempt]
    for kind, state in (("output", LineState.SUCCEEDED), ("error", LineState.FAILED)):
        write_part(connection, objects, batch_id, kind, [each.text for each in ours if each.kind == kind])
        lines = [each.line for each in ours if each.kind == kind]
        _set_state(connection, batch_id, lines, state)
    failed = sum(each.kind == "error" for each in ours)
    sums = {
        name: batch.c[name] + sum(getattr(each.usage, name) for each in ours)
        for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    }
    counts = {"completed": batch.c.completed + len(ours) - failed, "failed": batch.c.failed + failed}
    connection.execute(update(batch).where(batch.c.batch_id == batch_id).values(sums | counts))
    return ours


def write_part(
    connection: Connection, objects: Objects, batch_id: str, kind: str, lines: Sequence[bytes]
) -> None:
    """Write lines of a file. If this transaction fails, nothing names the object, and it is never read."""
    if not lines:
        return
    content = b"".join(lines)
    name = f"parts/{batch_id}/{token_hex(16)}"
    objects.create(name, content)
    row = {"batch_id": batch_id, "kind": kind, "object": name, "bytes": len(content)}
    connection.execute(insert(batch_part).values(row))


def in_ledger(connection: Connection, request_ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """(ending, anomaly) of these requests, as far as the ledger has them."""
    query = select(usage_event.c.request_id, usage_event.c.ending, usage_event.c.anomaly)
    found = connection.execute(query.where(are_those(recorded(connection, request_ids))))
    return {row.request_id: (row.ending, row.anomaly) for row in found}


def give_back(connection: Connection, runner: str, batch_id: str, lines: Sequence[GivenBack]) -> None:
    """Let these lines be claimed again."""
    held = _held(connection, runner, batch_id, lines)
    for each in lines:
        if held.get(each.line) == each.attempt:
            state = LineState.LOST if each.lost else LineState.PENDING
            connection.execute(
                update(batch_line)
                .where(batch_line.c.batch_id == batch_id, batch_line.c.line == each.line)
                .values(state=state, runner=None, not_before_ms=NOW_MS + each.wait_ms, failures=each.failures)
            )


def lock(connection: Connection, batch_id: str) -> Row[Any] | None:
    """The batch, which nobody else changes until this transaction ends; None if it is gone."""
    query = select(batch, NOW_MS.label("now_ms")).where(batch.c.batch_id == batch_id)
    return connection.execute(query.with_for_update()).one_or_none()


def _held(
    connection: Connection, runner: str, batch_id: str, lines: Sequence[Result] | Sequence[GivenBack]
) -> dict[int, int]:
    query = (
        select(batch_line.c.line, batch_line.c.attempt)
        .where(
            batch_line.c.batch_id == batch_id,
            batch_line.c.line.in_([each.line for each in lines]),
            batch_line.c.runner == runner,
            batch_line.c.state == LineState.RUNNING,
        )
        .order_by(batch_line.c.line)
        .with_for_update()
    )
    return {row.line: row.attempt for row in connection.execute(query)}


def _set_state(connection: Connection, batch_id: str, lines: Sequence[int], state: LineState) -> None:
    if lines:
        where = (batch_line.c.batch_id == batch_id) & batch_line.c.line.in_(lines)
        connection.execute(update(batch_line).where(where).values(state=state, runner=None))
