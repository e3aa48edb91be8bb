"""Whether the operator has ordered this instance to start its engine again, by `taas:restarts`
(docs/interfaces.md §3). It reads that every second; it stops nothing.
"""

import asyncio
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_keys


@dataclass(frozen=True, slots=True)
class RestartOrder:
    """For one start of the engine. `drain_s`: how long requests in flight may take to end."""

    epoch: str
    drain_s: float


class RestartWatch:
    """Follows the orders for one instance."""

    def __init__(self, redis: Redis, instance: str, poll_s: float) -> None:
        self._redis = redis
        self._instance = instance
        self._poll_s = poll_s

    async def ordered(self, epoch: str) -> RestartOrder:
        """Returns once this epoch is to end. An order for another epoch is of the past."""
        while True:
            order = await self._read()
            if order is not None and order.epoch == epoch:
                return order
            await asyncio.sleep(self._poll_s)

    async def _read(self) -> RestartOrder | None:
        """None also if Redis does not answer: the order is there again later."""
        try:
            raw = await self._redis.hget(redis_keys.RESTARTS, self._instance)
            fields = None if raw is None else orjson.loads(raw)
            return None if fields is None else RestartOrder(str(fields["epoch"]), float(fields["drain_s"]))
        except (RedisError, OSError, ValueError, KeyError, TypeError):
            return None
