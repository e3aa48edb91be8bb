"""The instance's entry in the registry: writes it, renews it every second, and keeps trying while Redis is
away.

It owns the lease. It does not know why a status changes. An engine goes on serving without Redis; gateways
decide what that means.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire.instance_entry import InstanceEntry
from serving import registry
from serving.metrics import WorkerMetrics
from serving.registry import LEASE_MS, Fenced

RENEW_S: Final = 1.0


class Registration:
    """One entry, written by one writer at a time, so that an older entry never overwrites a newer one."""

    def __init__(
        self,
        redis: Redis,
        entry: InstanceEntry,
        metrics: WorkerMetrics,
        note: Callable[[str], None],
        renew_s: float = RENEW_S,
        *,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self.entry = entry
        self._redis = redis
        self._metrics = metrics
        self._note = note
        self._renew_s = renew_s
        self._lease_ms = self._usual_lease_ms = lease_ms
        # Set once somebody has replaced this instance.
        self.fenced = asyncio.Event()
        self._writing = asyncio.Lock()
        self._reached = True
        self._removed = False

    async def publish(self, entry: InstanceEntry, lease_ms: int | None = None) -> None:
        """Publish this entry now, and renew it from now on. Returns also if Redis is away: the next renewal
        tries again; or if the instance is fenced: nothing is written any more.
        """
        self.entry = entry
        self._lease_ms = self._usual_lease_ms if lease_ms is None else lease_ms
        await self._write()

    def publish_soon(self, entry: InstanceEntry) -> None:
        """Publish with the next renewal: for load, which changes all the time."""
        self.entry = entry

    async def deregister(self) -> None:
        """Remove the entry for good."""
        self._removed = True
        await self._write()

    async def renew_forever(self) -> None:
        """Write the entry once a second, until cancelled."""
        while True:
            await asyncio.sleep(self._renew_s)
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            if self.fenced.is_set():
                return
            try:
                if self._removed:
                    await registry.remove(self._redis, self.entry.instance)
                else:
                    await registry.publish(self._redis, self.entry, self._lease_ms)
            except Fenced:
                self.fenced.set()
            except (RedisError, OSError) as exc:
                self._tell(reached=False, why=f": {type(exc).__name__}")
            else:
                self._tell(reached=True, why="")

    def _tell(self, *, reached: bool, why: str) -> None:
        self._metrics.redis_up.set(1 if reached else 0)
        if reached != self._reached:
            self._reached = reached
            self._note(
                "Redis is back, registered again"
                if reached
                else f"Redis does not answer{why}; the engine goes on, still trying to renew its lease"
            )
