"""Whether a reclaim takes this instance, by `taas:drained` (docs/interfaces.md §3). It reads that every
second; it decides and stops nothing.

While Redis is away, or emptied and without a catalogue, the last known order stays in force: no engine is
stopped or started on a guess.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_clock, redis_keys


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """What the machine is wanted for, and when, by Redis's clock."""

    use: str
    by_ms: int
    reclaim: str


class ReclaimWatch:
    """Follows the orders for one instance. `taken` is set while there is one, `free` while there is none."""

    def __init__(self, redis: Redis, instance: str, poll_s: float, note: Callable[[str], None]) -> None:
        self._redis = redis
        self._instance = instance
        self._poll_s = poll_s
        self._note = note
        self.order: DrainOrder | None = None
        self.taken = asyncio.Event()
        self.free = asyncio.Event()
        self.free.set()

    async def read_order(self) -> int | None:
        """Read once; returns the time in ms, by Redis's clock. None if Redis does not answer."""
        try:
            async with self._redis.pipeline(transaction=True) as read:
                read.time()
                read.hget(redis_keys.DRAINED, self._instance)
                read.exists(redis_keys.PROJECTION)
                clock, raw, has_catalogue = await read.execute()
        except (RedisError, OSError):
            return None
        if raw is not None or has_catalogue:
            self._take(None if raw is None else _read(raw))
        return redis_clock.milliseconds(clock)

    async def follow(self) -> None:
        """Read repeatedly, until cancelled."""
        while True:
            await self.read_order()
            await asyncio.sleep(self._poll_s)

    async def until_due(self) -> None:
        """Returns once the machine must be given up, or the order has been withdrawn."""
        while self.order is not None:
            now_ms = await self.read_order()
            if now_ms is not None and self.order is not None and now_ms >= self.order.by_ms:
                return
            await asyncio.sleep(self._poll_s)

    def _take(self, order: DrainOrder | None) -> None:
        before, self.order = self.order, order
        if order is None:
            self.taken.clear()
            self.free.set()
        else:
            self.free.clear()
            self.taken.set()
        if before is None and order is not None:
            self._note(f"reclaim {order.reclaim} takes this machine for {order.use}")
        elif before is not None and order is None:
            self._note(f"reclaim {before.reclaim} gives this machine back")


def _read(raw: bytes | str) -> DrainOrder:
    """An order that cannot be read is still an order. If it were due at once it would cut requests, so it is
    never due.
    """
    try:
        fields = orjson.loads(raw)
        return DrainOrder(str(fields["use"]), int(fields["by_ms"]), str(fields["reclaim"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return DrainOrder("unknown", 2**62, "unknown")
