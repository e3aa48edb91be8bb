"""From the usage streams into the ledger: read a batch, record it in one SQL transaction, acknowledge after the commit.

Owns at-least-once delivery and what becomes of an entry that is not an event. It knows neither prices nor tables: `ledger` records.
A kill at any moment leaves entries that are read again, and recording is unique by request id.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import redis
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError

from billing.ledger import ReceivedEvent, Recorded, RejectedEntry, record_events, record_rejected
from billing.metrics import BillingMetrics
from billing.tokens import UsageEventError
from billing.usage_stream import StreamEntry, UsageStream, read_cells

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Cell:
    """A stream and where this consumer stands in it. After a failure what was read but not recorded is read again first."""

    stream: UsageStream
    own_first: bool = False


class Consumer:
    """One consumer of all cells' usage streams. Not for two threads at once."""

    def __init__(
        self, engine: Engine, client: redis.Redis, *, name: str, batch: int, claim_idle_ms: int, metrics: BillingMetrics
    ) -> None:
        self._engine = engine
        self._client = client
        self._name = name
        self._batch = batch
        self._claim_idle_ms = claim_idle_ms
        self._metrics = metrics
        self._cells: dict[str, _Cell] = {}

    def consume_once(self) -> int:
        """One batch of each cell. Returns how many entries were taken off the streams; 0: nothing was new."""
        self._find_cells()
        return sum(self._consume(cell) for cell in self._cells.values())

    def claim_once(self) -> int:
        """Take over what dead consumers hold, and what no consumer was ever given."""
        self._find_cells()
        taken = 0
        for cell in self._cells.values():
            taken += self._record(cell.stream, cell.stream.claim(self._claim_idle_ms, self._batch))
            taken += self._record(cell.stream, cell.stream.stranded(self._batch))
        return taken

    def publish_lag(self) -> int:
        """Set the lag metrics. Returns the entries that wait in all streams."""
        self._find_cells()
        waiting = 0
        for name, cell in self._cells.items():
            lag = cell.stream.lag()
            self._metrics.stream_lag(name, lag)
            waiting += lag.entries
        return waiting

    def _find_cells(self) -> None:
        for name in read_cells(self._client):
            if name not in self._cells:
                stream = UsageStream(self._client, name, self._name)
                stream.ensure_group()
                self._cells[name] = _Cell(stream)

    def _consume(self, cell: _Cell) -> int:
        stream = cell.stream
        try:
            if cell.own_first:
                taken = self._record(stream, stream.read_own(self._batch))
                cell.own_first = taken > 0
                if taken:
                    return taken
            entries = stream.read_new(self._batch)
            cell.own_first = True
            taken = self._record(stream, entries)
            cell.own_first = False
            return taken
        except redis.ResponseError as exc:
            if "NOGROUP" not in str(exc):
                raise
            stream.ensure_group()  # The stream and its group were lost (FLUSHALL, an older copy restored).
            return 0

    def _record(self, stream: UsageStream, entries: list[StreamEntry]) -> int:
        if not entries:
            return 0
        received: list[ReceivedEvent] = []
        origin: list[StreamEntry] = []
        rejected: list[RejectedEntry] = []
        for entry in entries:
            if entry.raw is None:
                continue
            try:
                received.append(ReceivedEvent.read(entry.raw))
                origin.append(entry)
            except UsageEventError as exc:
                rejected.append(RejectedEntry(entry.cell, entry.entry_id, str(exc), entry.raw))
        self._store(received, origin, rejected)
        stream.acknowledge(entries)
        return len(entries)

    def _store(
        self, received: Sequence[ReceivedEvent], origin: Sequence[StreamEntry], rejected: list[RejectedEntry]
    ) -> None:
        try:
            with self._engine.begin() as connection:
                recorded = record_events(connection, received)
                new_rejected = record_rejected(connection, rejected)
        except (DataError, IntegrityError) as exc:
            # The database refuses a value in it. Alone, the one that it refuses can be told from the rest.
            if len(received) == 1:
                reason = f"refused by the database: {type(exc.orig).__name__}: {str(exc.orig).splitlines()[0]}"
                entry = origin[0]
                refused = RejectedEntry(entry.cell, entry.entry_id, reason, received[0].raw)
                self._store((), (), [*rejected, refused])
                return
            if not received:
                raise
            middle = len(received) // 2
            self._store(received[:middle], origin[:middle], rejected)
            self._store(received[middle:], origin[middle:], [])
            return
        self._publish(recorded, new_rejected)

    def _publish(self, recorded: Recorded, rejected: int) -> None:
        for item in recorded.events:
            self._metrics.recorded(item)
        self._metrics.usage_duplicates.inc(recorded.duplicates)
        for request_id in recorded.conflicts:
            _log.error("request %s has a second usage event that differs from the first; the first counts", request_id)
            self._metrics.usage_conflicts.inc()
        if rejected:
            _log.error("%d usage entries could not be read and were set aside", rejected)
            self._metrics.usage_rejected.inc(rejected)
