"""The entries of `taas:instances` now, added by hand or by workers, for people and for the allocator. It only
reads.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import redis

from billing.wire import redis_clock, redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus


def read_registered(client: redis.Redis) -> list[InstanceEntry]:
    """Entries whose lease holds by Redis's clock, by id. An instance that a reclaim has is draining;
    unreadable entries are left out. Raises redis.RedisError.
    """
    return read_registered_now(client)[1]


def read_registered_now(
    client: redis.Redis, holds: Callable[[InstanceEntry, int], bool] = InstanceEntry.is_live
) -> tuple[int, list[InstanceEntry]]:
    """The same, with Redis's clock; `holds` says whether an entry's lease does."""
    now_ms, found = _read_all(client)
    return now_ms, [entry for entry in found if holds(entry, now_ms)]


def machines_of(declared: int, there: Collection[InstanceEntry], *, measured: bool) -> int:
    """How many machines a pool has: as declared or, as long as nothing was declared or measured, as
    registered. A provider is no machine.
    """
    return declared if declared or measured else sum(1 for entry in there if not entry.is_provider)


def read_known(client: redis.Redis) -> list[InstanceEntry]:
    """Like `read_registered`, plus, as `down`, entries whose worker was lost: their lease has lapsed before
    they reported an end. Such an entry is kept for a day. Raises redis.RedisError.
    """
    now_ms, found = _read_all(client)
    lost = [
        replace(entry, status=InstanceStatus.DOWN)
        for entry in found
        if not entry.is_live(now_ms) and entry.status is not InstanceStatus.DOWN
    ]
    return sorted(
        [*(entry for entry in found if entry.is_live(now_ms)), *lost], key=lambda entry: entry.instance
    )


def _read_all(client: redis.Redis) -> tuple[int, list[InstanceEntry]]:
    with client.pipeline(transaction=False) as read:
        read.time()
        read.hgetall(redis_keys.INSTANCES)
        read.hkeys(redis_keys.DRAINED)
        clock, entries, away = read.execute()
    now_ms = redis_clock.milliseconds(clock)
    found = [entry for raw in entries.values() if (entry := _read(raw)) is not None]
    drained = {name.decode() if isinstance(name, bytes) else name for name in away}
    seen = [
        replace(entry, status=InstanceStatus.DRAINING) if _goes(entry, drained) else entry for entry in found
    ]
    return now_ms, sorted(seen, key=lambda entry: entry.instance)


def _goes(entry: InstanceEntry, drained: Collection[str]) -> bool:
    """Whether a reclaim has it and it has not left yet."""
    return entry.instance in drained and entry.status in {InstanceStatus.READY, InstanceStatus.STARTING}


def _read(raw: bytes | str) -> InstanceEntry | None:
    try:
        return InstanceEntry.from_json(raw)
    except ValueError:
        return None
