"""What stands in `taas:instances` now, added by hand or by workers, for people to see. Reads only; shows no engine's key."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import redis

from billing.wire import redis_clock, redis_keys


@dataclass(frozen=True, slots=True)
class Registered:
    """One live entry."""

    instance: str
    model: str
    pool: str
    cell: str
    url: str
    status: str
    abort: bool
    priority: bool
    epoch: str
    running: int
    waiting: int
    kv_usage: float
    lease_until_ms: int
    # Whether the engine has a page of metrics; not known of one that was never asked for it.
    has_metrics: bool = True


def read_registered(client: redis.Redis) -> list[Registered]:
    """Entries whose lease holds by Redis's clock, by id; one that a reclaim has is draining, unreadable ones are left out. Raises redis.RedisError."""
    return read_registered_now(client)[1]


def read_registered_now(client: redis.Redis) -> tuple[int, list[Registered]]:
    """The same, with Redis's clock."""
    now_ms, found = _read_all(client)
    return now_ms, [entry for entry in found if _is_live(entry, now_ms)]


def read_known(client: redis.Redis) -> list[Registered]:
    """As `read_registered`, and as `down` those whose worker was lost: their lease has lapsed before they said that they had ended. Such
    an entry is kept for a day. Raises redis.RedisError.
    """
    now_ms, found = _read_all(client)
    lost = [replace(entry, status="down") for entry in found if not _is_live(entry, now_ms) and entry.status != "down"]
    return sorted([*(entry for entry in found if _is_live(entry, now_ms)), *lost], key=lambda entry: entry.instance)


def _read_all(client: redis.Redis) -> tuple[int, list[Registered]]:
    with client.pipeline(transaction=False) as read:
        read.time()
        read.hgetall(redis_keys.INSTANCES)
        read.hkeys(redis_keys.DRAINED)
        clock, entries, away = read.execute()
    now_ms = redis_clock.milliseconds(clock)
    found = [entry for raw in entries.values() if (entry := _read(raw)) is not None]
    drained = {name.decode() if isinstance(name, bytes) else name for name in away}
    seen = [replace(entry, status="draining") if _goes(entry, drained) else entry for entry in found]
    return now_ms, sorted(seen, key=lambda entry: entry.instance)


def _is_live(entry: Registered, now_ms: int) -> bool:
    return entry.lease_until_ms == 0 or entry.lease_until_ms >= now_ms


def _goes(entry: Registered, drained: Collection[str]) -> bool:
    """Whether a reclaim has it, and it has not left yet."""
    return entry.instance in drained and entry.status in {"ready", "starting"}


def _read(raw: bytes | str) -> Registered | None:
    try:
        entry: dict[str, Any] = json.loads(raw)
        load = entry.get("load") or {}
        return Registered(
            instance=str(entry["instance"]),
            model=str(entry["model"]),
            pool=str(entry["pool"]),
            cell=str(entry["cell"]),
            url=str(entry["url"]),
            status=str(entry["status"]),
            abort=entry.get("abort") is True,
            priority=entry.get("priority") is True,
            epoch=str(entry["epoch"]),
            running=int(load.get("running", 0)),
            waiting=int(load.get("waiting", 0)),
            kv_usage=float(load.get("kv_usage", 0.0)),
            lease_until_ms=int(entry["lease_until_ms"]),
            has_metrics=entry.get("metrics") is not False,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
