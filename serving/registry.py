"""The registry of instances as a worker writes it: published, renewed, found and removed.
`billing.wire.instance_entry` owns its form.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from redis.exceptions import WatchError

from billing.wire import redis_clock, redis_keys
from billing.wire.evidence import RunningEngine
from billing.wire.instance_entry import InstanceEntry

if TYPE_CHECKING:
    from redis.asyncio import Redis

# Five missed renewals: a worker that is only slow keeps its place, one that is gone loses it within the time
# a caller would wait.
LEASE_MS: Final = 5_000
# The last counters of a cleanly stopped engine stay readable for this long.
FINAL_LEASE_MS: Final = 60_000


class Fenced(Exception):
    """The instance was replaced while its lease had run out: it must not come back."""


async def publish(redis: "Redis", entry: InstanceEntry, lease_ms: int = LEASE_MS) -> InstanceEntry:
    """Register or renew: write the entry with a lease that runs from Redis's own clock. Returns it as
    written. Raises redis.RedisError, Fenced.
    """
    while True:
        async with redis.pipeline(transaction=True) as write:
            # Whoever fences it writes here: then nothing is written.
            await write.watch(redis_keys.FENCED)
            if await write.hget(redis_keys.FENCED, entry.instance) is not None:
                raise Fenced
            now_ms = redis_clock.milliseconds(await write.time())
            leased = replace(entry, lease_until_ms=now_ms + lease_ms)
            write.multi()  # type: ignore[no-untyped-call]
            write.hset(redis_keys.INSTANCES, entry.instance, leased.to_json())
            try:
                await write.execute()
            except WatchError:
                continue
            return leased


async def fence(redis: "Redis", instance: str) -> None:
    """Keep an instance from coming back. Raises redis.RedisError."""
    now_ms = redis_clock.milliseconds(await redis.time())
    await redis.hset(redis_keys.FENCED, instance, str(now_ms))


async def fence_lapsed(redis: "Redis", entry: InstanceEntry) -> bool:
    """Keep an instance from coming back, unless it has renewed its lease meanwhile; returns whether it is
    fenced. Raises redis.RedisError.
    """
    await fence(redis, entry.instance)
    # From now on it cannot renew. If it has done so just before, it lives.
    latest = await find(redis, entry.instance)
    if latest is None or latest.lease_until_ms == entry.lease_until_ms:
        return True
    await redis.hdel(redis_keys.FENCED, entry.instance)
    return False


async def find(redis: "Redis", instance: str) -> InstanceEntry | None:
    """The entry under this id, lapsed or not; None if there is no readable one. Raises redis.RedisError."""
    raw = await redis.hget(redis_keys.INSTANCES, instance)
    if raw is None:
        return None
    try:
        return InstanceEntry.from_json(raw)
    except ValueError:
        return None


async def remove(redis: "Redis", instance: str) -> None:
    """Remove the entry. Raises redis.RedisError."""
    await redis.hdel(redis_keys.INSTANCES, instance)


async def publish_engine(redis: "Redis", instance: str, engine: RunningEngine) -> None:
    """Say what runs there now, for evidence. Raises redis.RedisError."""
    await redis.hset(redis_keys.EVIDENCE, instance, engine.to_json())


async def remove_engine(redis: "Redis", instance: str) -> None:
    """Nothing runs there any more. Raises redis.RedisError."""
    await redis.hdel(redis_keys.EVIDENCE, instance)
