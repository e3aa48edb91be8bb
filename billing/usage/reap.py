"""The reaper: settles every orphaned request, whose gateway no longer renews its lease, at its last
checkpoint. It owns finding them.

A lease is a moment of Redis's clock, and that clock may jump, as at a failover to another machine. Then
leases seem to have passed although they are renewed, or hold for as long as the clock went back. So a passed
lease is only a reason to watch: a request is settled once its lease has not changed for some seconds of this
process's own monotonic clock, during which Redis could take a renewal. That needs no earlier pass and no
other reaper. The cell's script decides in the end: a renewal in between wins, and nothing is settled twice.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import redis

from billing.cell.execute import load
from billing.cell.replies import Settled, parse_reap
from billing.cell.scripts import Command, reap_call
from billing.leadership import shorten
from billing.metrics import BillingMetrics
from billing.usage.busy_cells import BusyCells
from billing.wire import redis_clock, redis_keys
from billing.wire.reservation import stored

_log = logging.getLogger(__name__)

# More than this are taken in the next pass, at once.
_BATCH: Final = 500
# Of one cell, leases that are watched at a time.
_WATCHED_MOST: Final = 20_000
# Longer than a pass takes; a reaper that dies in one delays the next by this.
_LOCK_S: Final = 5.0
# What counts of the time between two passes: in a longer one Redis may have been away, and no gateway could
# renew.
_BETWEEN_PASSES_MOST_S: Final = 1.5
# A lease that ends later than this was given before Redis's clock went back. Gateways give seconds, a line 45
# s.
_LONGEST_LEASE_MS: Final = 600_000
# Such leases are rare: they are looked for in every so many passes.
_AHEAD_EVERY: Final = 10


class Lease(NamedTuple):
    """The lease of one request, as it is in Redis now."""

    cell: str
    request_id: str
    until_ms: int


@dataclass(slots=True)
class _Watch:
    """Since when leases have been unchanged."""

    since: dict[Lease, float] = field(default_factory=dict)

    def look(self, found: Iterable[Lease], now_s: float) -> list[Lease]:
        """Watch these and no others from now on. Returns those that are new."""
        before = self.since
        self.since = {lease: before.get(lease, now_s) for lease in found}
        return [lease for lease in self.since if lease not in before]

    def unchanged(self, now_s: float, for_s: float) -> list[Lease]:
        return [lease for lease, since_s in self.since.items() if now_s - since_s >= for_s]


class Reaper:
    """Reaps all cells. Any number may run; they take turns. `patience_s`: how long a passed lease is watched.
    `calm_s`: a Redis that has been up for less is not reaped. After an outage the gateways send the settles
    of their journals first, else a request that ended well would be taken for an orphan.
    """

    def __init__(
        self,
        client: redis.Redis,
        metrics: BillingMetrics,
        *,
        patience_s: float = 0,
        calm_s: int = 0,
        clock: Callable[[], float] = time.monotonic,
        busy: BusyCells | None = None,
    ) -> None:
        self._client = client
        self._busy = busy or BusyCells(client)
        self._metrics = metrics
        self._patience_s = patience_s
        self._calm_s = calm_s
        self._clock = clock
        self._passed_at = clock()
        # Seconds in which this reaper has seen Redis answer.
        self._watched_s = 0.0
        self._passes = 0
        self._passed, self._ahead = _Watch(), _Watch()

    def step(self) -> bool:
        """A loop's step: whether there may be more to end at once. Raises redis.RedisError."""
        return self.reap_once() > 0

    def reap_once(self) -> int:
        """End what has lapsed in every cell. Returns how many requests ended; 0 too while another process
        reaps.
        """
        self._look()
        leases = self._unchanged()
        if not leases or self._just_started():
            return 0
        lock = self._client.lock(redis_keys.REAPER_LOCK, timeout=_LOCK_S, blocking=False)
        if not lock.acquire():
            shorten(self._client, redis_keys.REAPER_LOCK, _LOCK_S)
            return 0
        try:
            return self._reap(leases)
        finally:
            try:
                lock.release()
            except redis.exceptions.LockError:
                _log.warning("reaping took longer than the lock was held for")

    def _unchanged(self) -> list[Lease]:
        """What is to be ended now, as many as one pass takes."""
        unchanged = [
            lease
            for watch in (self._passed, self._ahead)
            for lease in watch.unchanged(self._watched_s, self._patience_s)
        ]
        return unchanged[:_BATCH]

    def _reap(self, leases: Sequence[Lease]) -> int:
        calls = [reap_call(lease.cell, lease.request_id, lease.until_ms) for lease in leases]
        return self._count(leases, self._run(calls))

    def _just_started(self) -> bool:
        return int(self._client.info("server")["uptime_in_seconds"]) < self._calm_s

    def _look(self) -> None:
        """See which leases have passed, and now and then which ones hold for too long."""
        quiet = self._busy.quiet()
        cells = [cell for cell in self._busy.names() if cell not in quiet]
        now_ms = redis_clock.now_ms(self._client) if cells else 0
        passed = self._leases(cells, "-inf", now_ms)
        looks_ahead = self._passes % _AHEAD_EVERY == 0
        ahead = self._leases(cells, now_ms + _LONGEST_LEASE_MS, "+inf") if looks_ahead else []
        self._passes += 1
        # Only now: what follows counts as seen while Redis answered.
        at = self._clock()
        self._watched_s += min(at - self._passed_at, _BETWEEN_PASSES_MOST_S)
        self._passed_at = at
        seen_first = self._passed.look(passed, self._watched_s)
        if looks_ahead:
            seen_first += self._ahead.look(ahead, self._watched_s)
        if self._patience_s > 0:
            self._ask(seen_first)

    def _leases(self, cells: Sequence[str], from_ms: int | str, until_ms: int | str) -> list[Lease]:
        with self._client.pipeline(transaction=False) as read:
            for cell in cells:
                read.zrangebyscore(
                    redis_keys.open_requests(cell),
                    from_ms,
                    until_ms,
                    start=0,
                    num=_WATCHED_MOST,
                    withscores=True,
                )
            found = read.execute()
        return [
            Lease(cell, request_id.decode(), int(until))
            for cell, leases in zip(cells, found, strict=True)
            for request_id, until in leases
        ]

    def _ask(self, leases: Sequence[Lease]) -> None:
        """Wake the gateways of those that wait: they renew seldom. What runs renews its lease every few
        seconds by itself.
        """
        with self._client.pipeline(transaction=False) as read:
            for lease in leases:
                read.hmget(redis_keys.reservation(lease.cell, lease.request_id), stored("state", "gateway"))
            states = read.execute()
        with self._client.pipeline(transaction=False) as wake:
            for lease, (state, gateway) in zip(leases, states, strict=True):
                if state in {b"waiting", b"granted"} and gateway:
                    wake.publish(redis_keys.wake_channel(gateway.decode()), lease.request_id)
            wake.execute()

    def _run(self, calls: Sequence[Command]) -> list[Any]:
        # An emptied server has no scripts; a pass with work is rare.
        load(self._client)
        with self._client.pipeline(transaction=False) as run:
            for call in calls:
                run.execute_command(*call)  # type: ignore[no-untyped-call]
            return run.execute(raise_on_error=False)

    def _count(self, leases: Sequence[Lease], replies: Sequence[Any]) -> int:
        reaped = 0
        failure: Exception | None = None
        for lease, reply in zip(leases, replies, strict=True):
            if isinstance(reply, Exception):
                _log.error("request %s of cell %s cannot be reaped: %s", lease.request_id, lease.cell, reply)
                failure = reply
            elif isinstance(parse_reap(reply), Settled):
                reaped += 1
                self._metrics.reaped.labels(lease.cell).inc()
        if failure is not None:
            raise failure
        return reaped
