"""The requests of one process that wait for a pool that has no instance: one is being started for them.

It bounds how many wait, and for how long, and tells billing that they do. Nothing is reserved for them yet.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Final

from billing.wire import redis_keys
from gateway.catalogue.entries import Model
from gateway.errors import ClientDisconnected, NoInstance
from gateway.redis.pipe import RedisPipe, RedisUnavailable

# Instances are read twice a second.
_LOOK_S: Final = 0.25
# Billing looks every five seconds.
_WANTED_MS: Final = 15_000
_TELL_S: Final = 5.0
# For a caller that could not wait, or waited in vain: a start takes longer than most waits for a slot.
_RETRY_MS: Final = 10_000


class WakingRoom:
    """`most` requests may wait, half of them of one tenant, each up to `wait_s`."""

    def __init__(self, redis: RedisPipe, most: int, wait_s: float) -> None:
        self._redis = redis
        self._most = most
        self._wait_s = wait_s
        self._told_at: dict[str, float] = {}
        self._stopped = False
        self._waiting: Counter[str] = Counter()

    async def wait(
        self, model: Model, tenant: str, is_there: Callable[[], bool], is_gone: Callable[[], bool]
    ) -> None:
        """Returns once `is_there`. Raises NoInstance if there is no room or no instance in time,
        ClientDisconnected once the caller `is_gone`.
        """
        waiting = self._waiting
        if waiting.total() >= self._most or 2 * waiting[tenant] >= self._most:
            raise NoInstance(_RETRY_MS)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        waiting[tenant] += 1
        try:
            while not is_there():
                if is_gone():
                    raise ClientDisconnected
                if self._stopped or loop.time() >= until:
                    raise NoInstance(_RETRY_MS)
                await self._tell(model.pool, loop.time())
                await asyncio.sleep(_LOOK_S)
        finally:
            waiting[tenant] -= 1
            if not waiting[tenant]:
                del waiting[tenant]

    def stop(self) -> None:
        """The process ends: nobody waits any longer."""
        self._stopped = True

    async def _tell(self, pool: str, now: float) -> None:
        if now - self._told_at.get(pool, -_TELL_S) < _TELL_S:
            return
        self._told_at[pool] = now
        with contextlib.suppress(RedisUnavailable):
            await self._redis.execute("SET", redis_keys.wanted(pool), 1, "PX", _WANTED_MS)
