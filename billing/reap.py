"""The reaper: ends every request whose gateway has not renewed its lease, at its last checkpoint. Owns finding them; the cell's
script decides, by the server's clock, so a renewal that comes in between wins and a second reaper does nothing twice.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import redis

from billing import redis_keys
from billing.cell.replies import Settled, parse_reap
from billing.cell.scripts import CellKeys, Command, reap_call, scripts
from billing.metrics import BillingMetrics
from billing.usage_stream import read_cells

_log = logging.getLogger(__name__)

# More than this in one cell are taken in the next pass, at once.
_BATCH: Final = 500
# Longer than a pass takes; a reaper that dies in one delays the next by this.
_LOCK_S: Final = 5.0


class Reaper:
    """Reaps all cells. Any number may run; they take turns.

    `grace_ms` is added to every lease. A Redis that has been up for less than `calm_s` is not reaped at all: after an outage the gateways
    come first, with their checkpoints and with the settles in their journals, or a request that ended well would be taken for a dead one.
    """

    def __init__(self, client: redis.Redis, metrics: BillingMetrics, *, grace_ms: int = 0, calm_s: int = 0) -> None:
        self._client = client
        self._metrics = metrics
        self._grace_ms = grace_ms
        self._calm_s = calm_s

    def step(self) -> bool:
        """A loop's step: whether there may be more to end at once. Raises redis.RedisError."""
        return self.reap_once() > 0

    def reap_once(self) -> int:
        """End what has lapsed in every cell. Returns how many requests ended; 0 too while another process reaps."""
        lock = self._client.lock(redis_keys.REAPER_LOCK, timeout=_LOCK_S, blocking=False)
        if not lock.acquire():
            return 0
        try:
            return self._reap()
        finally:
            try:
                lock.release()
            except redis.exceptions.LockError:
                _log.warning("reaping took longer than the lock was held for")

    def _reap(self) -> int:
        cells = read_cells(self._client)
        lapsed = self._lapsed(cells)
        if not lapsed or self._just_started():
            return 0
        with self._client.pipeline(transaction=False) as read:
            for cell, request_id in lapsed:
                read.hmget(redis_keys.reservation(cell, request_id), ["tb", "kb"])
            buckets = read.execute()
        calls = []
        for (cell, request_id), (tenant_bucket, key_bucket) in zip(lapsed, buckets, strict=True):
            # A reservation that is gone has no buckets to settle: any key of its slot stands in, and the script drops its id.
            stand_in = redis_keys.reservation(cell, request_id)
            tenant_key = tenant_bucket.decode() if tenant_bucket else stand_in
            key_key = key_bucket.decode() if key_bucket else stand_in
            calls.append(reap_call(CellKeys.of_reservation(cell, request_id, tenant_key, key_key)))
        return self._count(lapsed, self._run(calls))

    def _just_started(self) -> bool:
        return int(self._client.info("server")["uptime_in_seconds"]) < self._calm_s

    def _lapsed(self, cells: Sequence[str]) -> list[tuple[str, str]]:
        now_s, now_us = self._client.time()
        now_ms = int(now_s) * 1000 + int(now_us) // 1000 - self._grace_ms
        with self._client.pipeline(transaction=False) as read:
            for cell in cells:
                read.zrangebyscore(redis_keys.open_requests(cell), "-inf", now_ms, start=0, num=_BATCH)
            found = read.execute()
        return [(cell, request_id.decode()) for cell, ids in zip(cells, found, strict=True) for request_id in ids]

    def _run(self, calls: Sequence[Command]) -> list[Any]:
        for script in scripts():
            # After a restart of Redis the scripts are gone; loading is idempotent and a pass with work is rare.
            self._client.script_load(script.text)
        with self._client.pipeline(transaction=False) as run:
            for call in calls:
                run.execute_command(*call)  # type: ignore[no-untyped-call]
            return run.execute(raise_on_error=False)

    def _count(self, lapsed: Sequence[tuple[str, str]], replies: Sequence[Any]) -> int:
        reaped = 0
        failure: Exception | None = None
        for (cell, request_id), reply in zip(lapsed, replies, strict=True):
            if isinstance(reply, Exception):
                _log.error("request %s of cell %s cannot be reaped: %s", request_id, cell, reply)
                failure = reply
            elif isinstance(parse_reap(reply), Settled):
                reaped += 1
                self._metrics.reaped.labels(cell).inc()
        if failure is not None:
            raise failure
        return reaped
