"""Which launcher acts: one at a time. Another one waits, and takes over within seconds after it has died."""

import secrets
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, WatchError

from billing.wire import redis_keys

_LEASE_MS: Final = 3_000


class Leader:
    """A lease in Redis, renewed before each round."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._name = secrets.token_hex(8)

    async def leads(self) -> bool:
        """Whether this process may act now, and for the next seconds."""
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
        except WatchError:
            return False
        except (RedisError, OSError):
            return False

    async def resign(self) -> None:
        """So that another one need not wait."""
        if await self.leads():
            await self._redis.delete(redis_keys.LAUNCHER)
