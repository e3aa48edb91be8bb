"""The once-a-second work of a process beside its requests: its heartbeat, sending its journal to Redis,
reading which requests are in quarantine, forgetting instances that are gone, and noting what is degraded.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

from billing.wire import redis_keys
from gateway.catalogue.feed import Catalogue
from gateway.clock import Clock
from gateway.metrics import Metrics
from gateway.quarantine import Quarantine
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.redis.unsynced import UnsyncedSettles
from gateway.upstream.engines import Engines
from gateway.waiting.outage import OutageLeases

log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
HEARTBEAT_LEASE_MS: Final = 5_000


class Housekeeping:
    """The once-a-second round of one process."""

    def __init__(
        self,
        *,
        gateway_id: str,
        redis: RedisPipe,
        journal: Journal,
        unsynced: UnsyncedSettles,
        outage: OutageLeases,
        catalogue: Catalogue,
        metrics: Metrics,
        clock: Clock,
        quarantine: Quarantine,
        engines: Engines,
    ) -> None:
        self._gateway_id = gateway_id
        self._redis = redis
        self._journal = journal
        self._unsynced = unsynced
        self._outage = outage
        self._catalogue = catalogue
        self._metrics = metrics
        self._clock = clock
        self._quarantine = quarantine
        self._engines = engines

    async def run(self) -> None:
        """Runs until cancelled. An outage of Redis, or an unexpected error, makes the process degraded and
        does not end it.
        """
        while True:
            away = failed = False
            try:
                await self._heartbeat()
                await self._quarantine.refresh()
                await self._journal.drain(self._unsynced.execute)
            except RedisUnavailable:
                away = True
            except (
                Exception
            ):  # a full disk, or a bug: without this round no journal would ever be sent to Redis
                log.exception("housekeeping failed")
                failed = True
            if self._catalogue.loaded:
                self._engines.keep(set(self._catalogue.instance_ids()))
            self._metrics.set_degraded("redis", away)
            self._metrics.set_degraded("housekeeping", failed)
            self._metrics.set_models(self._catalogue.models)
            self._metrics.set_journal_entries(self._journal.entries)
            self._metrics.set_degraded("journal", self._journal.full)
            self._metrics.set_degraded("durability", not self._unsynced.promised)
            self._metrics.set_degraded("catalogue", not self._catalogue.fresh)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _heartbeat(self) -> None:
        """Renew this process's lease, and count the gateways that are alive."""
        started_at = time.monotonic()
        seconds, micros = await self._redis.execute("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        self._clock.set_redis_time(now_ms)
        _, raw = await self._redis.execute_many(
            [
                ("HSET", redis_keys.GATEWAYS, self._gateway_id, now_ms + HEARTBEAT_LEASE_MS),
                ("HGETALL", redis_keys.GATEWAYS),
            ]
        )
        leases = dict(zip(raw[::2], raw[1::2], strict=True))
        # A lease that ends much later than one given now was given before Redis's clock went back. A living
        # gateway has sent a heartbeat since, or will soon.
        self._outage.count_gateways(
            sum(0 <= int(lease) - now_ms <= 2 * HEARTBEAT_LEASE_MS for lease in leases.values())
        )
        self._outage.renew()
        dead = [gateway for gateway, lease in leases.items() if abs(int(lease) - now_ms) > 60_000]
        if dead:
            await self._redis.execute("HDEL", redis_keys.GATEWAYS, *dead)
        self._metrics.redis_roundtrip(time.monotonic() - started_at)

    async def deregister(self) -> None:
        """Remove this process from the list of gateways that are alive."""
        with contextlib.suppress(RedisUnavailable):
            await self._redis.execute("HDEL", redis_keys.GATEWAYS, self._gateway_id)
