"""Moves usage streams into the ledger: reads a batch, records it in one SQL transaction, acknowledges after
the commit.

It owns at-least-once delivery, and what happens to an entry that is not an event. It knows neither prices nor
tables: `ledger` records. After a kill the entries are read again, and recording is unique by request id.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

import redis
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError

from billing.catalogue import budget_publication
from billing.ledger.budget_spent import add_spent
from billing.ledger.entries import ReceivedEvent, Recorded, RejectedEntry, record_events, record_rejected
from billing.metrics import BillingMetrics
from billing.usage.busy_cells import BusyCells
from billing.usage.streams import NO_LAG, StreamEntry, StreamLag, UsageStreams
from billing.wire.tokens import UsageEventError

_log = logging.getLogger(__name__)


# At least this many entries of one stream at a time, however many streams there are.
_LEAST: Final = 50
# If this many were read at once, more are waiting.
MORE_WAITS: Final = _LEAST


class Consumer:
    """One consumer of all busy cells' usage streams. Not for two threads at once."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        *,
        name: str,
        batch: int,
        claim_idle_ms: int,
        metrics: BillingMetrics,
        busy: BusyCells | None = None,
    ) -> None:
        self._engine = engine
        self._client = client
        self._busy = busy or BusyCells(client)
        self._streams = UsageStreams(client, name)
        self._batch = batch
        self._claim_idle_ms = claim_idle_ms
        self._metrics = metrics
        self._grouped: set[str] = set()
        self._nothing_to_do = threading.Event()
        # After a failure, or at the start, what was read but not recorded is read again first.
        self._own_first = True

    def consume_once(self, *, block_ms: int | None = None) -> int:
        """Record the new usage of each cell; with `block_ms` it waits that long for some. Returns how many
        entries were read from the streams.
        """
        try:
            return self._consume(self._cells(), block_ms)
        except redis.ResponseError as exc:
            if "NOGROUP" not in str(exc):
                raise
            # A stream and its group were lost (FLUSHALL, an older copy restored): the next call makes them
            # anew.
            self._grouped.clear()
            return 0

    def claim_once(self) -> int:
        """Take over entries of dead consumers, and entries that no consumer ever got. It publishes the lag
        first, because that must be visible while SQL accepts nothing.
        """
        cells = [cell for cell, lag in self._look().items() if lag.entries]
        if not cells:
            return 0
        taken = self._record(self._streams.claim(cells, self._claim_idle_ms, self._batch))
        return taken + self._record(self._streams.stranded(cells, self._batch))

    def _look(self) -> dict[str, StreamLag]:
        cells, quiet = self._cells(), self._busy.quiet()
        lags = dict.fromkeys(cells, NO_LAG) | self._streams.lags(
            [cell for cell in cells if cell not in quiet]
        )
        self._metrics.stream_lags(lags)
        return lags

    def _cells(self) -> list[str]:
        """The busy cells, each with its group."""
        cells = self._busy.names()
        if new := [cell for cell in cells if cell not in self._grouped]:
            self._streams.ensure_groups(new)
        self._grouped = set(cells)
        return cells

    def _consume(self, cells: Sequence[str], block_ms: int | None) -> int:
        if not cells:
            if block_ms is not None:
                self._nothing_to_do.wait(block_ms / 1000)
            return 0
        count = max(_LEAST, self._batch // len(cells))
        if self._own_first:
            taken = self._record(self._streams.read_own(cells, count))
            self._own_first = taken > 0
            if taken:
                return taken
        entries = self._streams.read_new(cells, count, block_ms=block_ms)
        self._own_first = True
        taken = self._record(entries)
        self._own_first = False
        return taken

    def _record(self, entries: Sequence[StreamEntry]) -> int:
        for start in range(0, len(entries), self._batch):
            self._record_batch(entries[start : start + self._batch])
        return len(entries)

    def _record_batch(self, entries: Sequence[StreamEntry]) -> None:
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
        self._streams.acknowledge(entries)

    def _store(
        self, received: Sequence[ReceivedEvent], origin: Sequence[StreamEntry], rejected: list[RejectedEntry]
    ) -> None:
        try:
            with self._engine.begin() as connection:
                recorded = record_events(connection, received)
                ids = _ids_by_tenant(received)
                budgeted = add_spent(connection, ids, recorded.events)
                new_rejected = record_rejected(connection, rejected)
        except (DataError, IntegrityError) as exc:
            # The database refuses a value in the batch. One by one, the refused event can be identified.
            if len(received) == 1:
                reason = (
                    f"refused by the database: {type(exc.orig).__name__}: {str(exc.orig).splitlines()[0]}"
                )
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
        if budgeted:
            # If this fails the entries are read again, and then it is done.
            with self._engine.connect() as connection:
                budget_publication.publish(self._client, connection, budgeted, ids)
        self._publish(recorded, new_rejected)

    def _publish(self, recorded: Recorded, rejected: int) -> None:
        for item in recorded.events:
            self._metrics.recorded(item)
        self._metrics.usage_duplicates.inc(recorded.duplicates)
        for request_id in recorded.conflicts:
            _log.error(
                "request %s has a second usage event that differs from the first; the first counts",
                request_id,
            )
            self._metrics.usage_conflicts.inc()
        if rejected:
            _log.error("%d usage entries could not be read and were set aside", rejected)
            self._metrics.usage_rejected.inc(rejected)


def _ids_by_tenant(received: Sequence[ReceivedEvent]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in received:
        found.setdefault(item.event.tenant, []).append(item.event.request_id)
    return found
