"""Serves the lines of open batches: claims them, sends them, records what came of them. One per process, any
number of processes; each may die at any moment.

It owns the round and how many lines each batch may have under way. An answer is recorded once the ledger has
its request as complete: one that a gateway gave and did not live to settle is billed to nobody, so that the
line is sent again. What was answered but not yet recorded when a process dies is sent again by another;
billing charges for one of the two and absorbs the other.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import Any, Final

from sqlalchemy import Engine, Row, select
from sqlalchemy.exc import SQLAlchemyError

from billing.batch import batch_rows, line_rows
from billing.batch.answers import Usage
from billing.batch.ending import advance_batch
from billing.batch.line_rows import GivenBack, Result
from billing.batch.metrics import BatchMetrics
from billing.batch.objects import Objects
from billing.batch.reading import read_batch
from billing.batch.sending import Line, Sender
from billing.batch.settings import BatchSettings
from billing.schema.batches import batch_runner
from billing.schema.catalogue import api_key
from billing.wire.batch_statuses import OPEN_STATUSES
from billing.wire.cancellation import end_tasks
from billing.wire.ending import Ending
from billing.wire.routes import Route

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5
_CLAIM_S: Final = 0.02
_IDLE_LOOK_S: Final = 2.0
# So many results are one transaction; the first of them has waited so long.
_RECORD_LINES: Final = 64
_RECORD_S: Final = 0.2
# Longer than billing is away; then the answer is given up, and the line is sent again.
_BILL_S: Final = 900.0
_LAST_BILLS_S: Final = 5.0
# Answers that may wait for their bill, for each line that may be under way.
_UNBILLED: Final = 8
# How long a stopping process waits for its lines.
_DRAIN_S: Final = 20.0

Outcome = Result | GivenBack


class Runner:
    """One process's share of the work."""

    def __init__(
        self, engine: Engine, objects: Objects, settings: BatchSettings, metrics: BatchMetrics
    ) -> None:
        self.name = token_hex(8)
        self._engine = engine
        self._objects = objects
        self._settings = settings
        self._metrics = metrics
        self._sender = Sender(
            objects, settings.gateway_url, settings.service_key.get_secret_value(), settings.concurrency
        )
        self._open: Sequence[Row[Any]] = ()
        self._under_way: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: dict[str, asyncio.Task[None]] = {}
        # Answers whose bill is awaited, by request id: of which batch, and since when.
        self._unbilled: dict[str, tuple[str, float, Result]] = {}
        self._done: dict[str, list[Outcome]] = {}
        self._answered = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until stopped. It waits out outages of PostgreSQL, of the store and of gateways."""
        rounds = [
            asyncio.create_task(self._repeat(self._renew, self._settings.lease_s / 4)),
            asyncio.create_task(self._repeat(self._look, _LOOK_S)),
            asyncio.create_task(self._repeat(self._record_soon, 0)),
            asyncio.create_task(self._repeat(self._claim, _CLAIM_S)),
        ]
        await stop.wait()
        await end_tasks(rounds.pop())  # nothing is claimed any more
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        await end_tasks(*self._tasks, *rounds)
        with suppress(SQLAlchemyError):
            deadline = time.monotonic() + _LAST_BILLS_S
            await self._record_billed()
            while self._unbilled and time.monotonic() < deadline:
                await asyncio.sleep(_RECORD_S)
                await self._record_billed()
            await asyncio.to_thread(self._leave)
        await self._sender.close()

    async def _repeat(self, step: Any, pause_s: float) -> None:
        while True:
            try:
                await step()
            except Exception as exc:  # whatever store was away, the next round tries again
                self._metrics.failures.inc()
                log.warning("a step of the runner failed: %s", type(exc).__name__)
                if not isinstance(exc, (SQLAlchemyError, OSError)):
                    log.debug("the step's failure", exc_info=exc)
                await asyncio.sleep(1.0)
            await asyncio.sleep(pause_s)

    async def _renew(self) -> None:
        def renew() -> None:
            with self._engine.begin() as connection:
                line_rows.renew(connection, self.name, self._settings.lease_s)

        await asyncio.to_thread(renew)

    async def _look(self) -> None:
        """See which batches are open, read new ones, and end those that are due."""

        def look() -> tuple[Sequence[Row[Any]], bool]:
            with self._engine.connect() as connection:
                return batch_rows.open_batches(connection), line_rows.leads(connection, self.name)

        self._open, leads = await asyncio.to_thread(look)
        # All processes see the same; one tells it.
        statuses = Counter(row.status for row in self._open if leads)
        for status in OPEN_STATUSES:
            self._metrics.open.labels(status).set(statuses[status])
        for row in self._open:
            if row.status == "validating" and row.batch_id not in self._reading:
                task = asyncio.create_task(self._read(row.batch_id))
                self._reading[row.batch_id] = task
            await asyncio.to_thread(advance_batch, self._engine, self._objects, self._settings, row.batch_id)
        if not self._open:
            await asyncio.sleep(_IDLE_LOOK_S - _LOOK_S)

    async def _read(self, batch_id: str) -> None:
        try:
            await asyncio.to_thread(
                read_batch, self._engine, self._objects, self._settings, self.name, batch_id
            )
        except Exception:
            self._metrics.failures.inc()
            log.exception("batch %s could not be read; it is tried again", batch_id)
        finally:
            del self._reading[batch_id]

    async def _claim(self) -> None:
        """Take lines as long as there is room: no batch has more than its share of it under way."""
        served = [row for row in self._open if row.status != "validating"]
        if not served or len(self._unbilled) > _UNBILLED * self._settings.concurrency:
            await asyncio.sleep(_LOOK_S)
            return
        share = max(1, self._settings.concurrency // max(1, len(served)))
        for row in served:
            room = min(share - self._under_way[row.batch_id], self._settings.concurrency - len(self._tasks))
            # By several at once, unless nothing is under way.
            if room <= 0 or (room < share // 4 and self._under_way[row.batch_id]):
                continue
            lines = await asyncio.to_thread(self._claimed, row, room)
            for line in lines:
                self._under_way[row.batch_id] += 1
                self._metrics.under_way.set(self._under_way.total())
                task = asyncio.create_task(self._serve(line))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if not lines:
                await asyncio.sleep(0.1 / len(served))

    def _claimed(self, row: Row[Any], room: int) -> list[Line]:
        begin = row.status == "in_progress"
        with self._engine.begin() as connection:
            found = line_rows.claim(connection, row.batch_id, self.name, room, begin=begin)
            if not found:
                return []
            key = connection.execute(
                select(api_key.c.hash).where(api_key.c.key_id == row.key_id)
            ).scalar_one()
        return [
            Line(
                batch_id=row.batch_id, key_hash=key, route=Route(row.route), input_file=row.input_file,
                line=each.line, start=each.start, length=each.length, attempt=each.attempt,
                failures=each.failures,
            )
            for each in found
        ]  # fmt: skip

    async def _serve(self, line: Line) -> None:
        outcome: Outcome = GivenBack(
            line=line.line, attempt=line.attempt, lost=True, wait_ms=1_000, failures=line.failures
        )
        try:
            outcome = await self._sender.send(line)
        except Exception:
            self._metrics.failures.inc()
            log.exception("line %s/%d could not be sent", line.batch_id, line.line)
        finally:
            self._under_way[line.batch_id] -= 1
            self._metrics.under_way.set(self._under_way.total())
            if isinstance(outcome, Result) and outcome.kind == "output":
                self._unbilled[outcome.request_id] = line.batch_id, time.monotonic(), outcome
            else:
                self._done.setdefault(line.batch_id, []).append(outcome)
            self._answered.set()

    async def _record_soon(self) -> None:
        """Record what is done, several results at a time."""
        await self._answered.wait()
        await asyncio.sleep(_RECORD_S)
        self._answered.clear()
        await self._record_billed()
        if self._unbilled:
            self._answered.set()

    async def _record_billed(self) -> None:
        """Record what is done, and the answers that are in the ledger."""

        def read() -> dict[str, tuple[str, str | None]]:
            with self._engine.connect() as connection:
                return line_rows.in_ledger(connection, list(self._unbilled))

        events = await asyncio.to_thread(read) if self._unbilled else {}
        for request_id, (batch_id, since, result) in list(self._unbilled.items()):
            ending, anomaly = events.get(request_id, (None, None))
            # A figure that is kept off the bill is in none of the batch's figures.
            outcome: Outcome = result if anomaly is None else replace(result, usage=Usage())
            if ending != Ending.COMPLETE:
                lost = ending is None
                if lost and time.monotonic() - since < _BILL_S:
                    continue
                outcome = GivenBack(
                    line=result.line, attempt=result.attempt, lost=lost, wait_ms=0, failures=0
                )
            del self._unbilled[request_id]
            self._done.setdefault(batch_id, []).append(outcome)
        await self._record()

    async def _record(self) -> None:
        """Record what is done. What cannot be recorded now is kept for the next round."""
        for batch_id in list(self._done):
            outcomes = self._done.pop(batch_id)
            for start in range(0, len(outcomes), _RECORD_LINES):
                part = outcomes[start : start + _RECORD_LINES]
                try:
                    await asyncio.shield(asyncio.to_thread(self._record_part, batch_id, part))
                except Exception:
                    self._done.setdefault(batch_id, [])[:0] = outcomes[start:]
                    self._answered.set()
                    raise

    def _record_part(self, batch_id: str, outcomes: list[Outcome]) -> None:
        results = [each for each in outcomes if isinstance(each, Result)]
        back = [each for each in outcomes if isinstance(each, GivenBack)]
        with self._engine.begin() as connection:
            ours = line_rows.record(connection, self._objects, self.name, batch_id, results)
            line_rows.give_back(connection, self.name, batch_id, back)
        counts = self._metrics.lines
        for result in ours:
            counts["succeeded" if result.kind == "output" else "failed"].inc()
        counts["overtaken"].inc(len(results) - len(ours))
        for each in back:
            counts["lost" if each.lost else "given_back"].inc()

    def _leave(self) -> None:
        """Let others take this process's lines at once."""
        with self._engine.begin() as connection:
            connection.execute(batch_runner.delete().where(batch_runner.c.runner == self.name))
