"""Which launcher acts: one at a time. Another one waits, and takes over within seconds after it has died."""

import asyncio
import secrets
import time
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_keys

_LEASE_MS: Final = 3_000
_RENEW_S: Final = 0.5
# Less than the lease, so that it is given up before another launcher can have it.
_SURE_S: Final = 2.0


class Leader:
    """A lease in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._name = secrets.token_hex(8)
        self._until = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._until

    async def keep(self) -> None:
        """Take the lease as soon as it is free, and renew it, until cancelled."""
        while True:
            asked = time.monotonic()
            if await self._renew():
                self._until = asked + _SURE_S
            await asyncio.sleep(_RENEW_S)

    async def resign(self) -> None:
        """So that another one need not wait."""
        self._until = 0.0
        if await self._renew():
            await self._redis.delete(redis_keys.LAUNCHER)

    async def _renew(self) -> bool:
        try:
            if await self._redis.set(redis_keys.LAUNCHER, self._name, nx=True, px=_LEASE_MS):
                return True
            async with self._redis.pipeline(transaction=True) as write:
                await write.watch(redis_keys.LAUNCHER)
                if await write.get(redis_keys.LAUNCHER) != self._name.encode():
                    return False
                write.multi()  # type: ignore[no-untyped-call]
                write.pexpire(redis_keys.LAUNCHER, _LEASE_MS)
                await write.execute()
                return True
        except (RedisError, OSError):
            return False
