"""The registry of instances: what an entry of `taas:instances` says, how it is written, and which entries count.

It owns the entry's form. It must not know how an engine runs or how a gateway chooses. Reading is pure: the reader brings the hash and the
time (Redis `TIME`, ms). An entry is renewed by writing it again; what a dead worker left counts no more once its lease has lapsed, and billing takes
it out a day later.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import orjson

from billing.wire import redis_clock, redis_keys

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from redis.asyncio import Redis

# Five missed renewals: a worker that is only slow keeps its place, one that is gone loses it within the time a caller would wait.
LEASE_MS: Final = 5_000
# The last counters of a cleanly stopped engine stay readable for this long.
FINAL_LEASE_MS: Final = 60_000
# Where an engine tells what each request has produced, if it does: `serving/vllm_middleware`.
REQUEST_COUNTS_PATH: Final = "/taas/request_counts"


class InstanceStatus(StrEnum):
    """Only `ready` instances get new requests; `draining` ones finish what they have."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine says of itself: requests running and waiting, and the share of its KV cache in use (0 to 1)."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Tokens since the engine's start, by its own counters."""

    prompt: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class FinalCounters:
    """The last counters of an engine that runs no more, as read (its baseline is not taken off). Not `exact`: it died or was cut off, and may have
    produced more than was read.
    """

    epoch: str
    counters: EngineCounters
    baseline: EngineCounters
    exact: bool


@dataclass(frozen=True, slots=True)
class InstanceEntry:
    """One instance as the registry shows it. `epoch` changes with each start of the engine; `baseline` is what its counters said before any
    tenant's request; `priority`: it schedules by priority, so requests may be sent with one; `counts`: it tells what each
    request has produced, by its id; `final` is set once this epoch has ended; `earlier` are ended epochs of the same instance, newest first.
    """

    instance: str
    model: str
    pool: str
    cell: str
    url: str
    key: str | None = field(repr=False)
    epoch: str
    status: InstanceStatus
    lease_until_ms: int = 0
    abort: bool = False
    priority: bool = False
    counts: bool = False
    load: EngineLoad = EngineLoad()
    baseline: EngineCounters = EngineCounters()
    final: FinalCounters | None = None
    earlier: tuple[FinalCounters, ...] = ()

    def is_live(self, now_ms: int) -> bool:
        """Whether the lease holds. A lease of 0 never lapses: the instance was added by hand."""
        return self.lease_until_ms == 0 or self.lease_until_ms >= now_ms

    def to_json(self) -> bytes:
        """The compact JSON of docs/interfaces.md §3."""
        return orjson.dumps(
            {
                "instance": self.instance,
                "model": self.model,
                "pool": self.pool,
                "cell": self.cell,
                "url": self.url,
                "key": self.key,
                "epoch": self.epoch,
                "status": self.status.value,
                "lease_until_ms": self.lease_until_ms,
                "abort": self.abort,
                "priority": self.priority,
                "counts": self.counts,
                "load": {"running": self.load.running, "waiting": self.load.waiting, "kv_usage": self.load.kv_usage},
                "baseline": _counters_json(self.baseline),
                "final": None if self.final is None else _final_json(self.final),
                "earlier": [_final_json(ended) for ended in self.earlier],
            }
        )

    @classmethod
    def from_json(cls, raw: bytes | str) -> "InstanceEntry":
        """Read an entry; unknown fields are ignored, so that old and new processes run side by side. ValueError when it is not one."""
        try:
            fields = orjson.loads(raw)
            final = fields.get("final")
            return cls(
                instance=_text(fields["instance"]),
                model=_text(fields["model"]),
                pool=_text(fields["pool"]),
                cell=_text(fields["cell"]),
                url=_text(fields["url"]),
                key=None if fields.get("key") is None else _text(fields["key"]),
                epoch=str(fields["epoch"]),
                status=InstanceStatus(fields["status"]),
                lease_until_ms=_count(fields["lease_until_ms"]),
                abort=fields.get("abort") is True,
                priority=fields.get("priority") is True,
                counts=fields.get("counts") is True,
                load=_read_load(fields.get("load") or {}),
                baseline=_read_counters(fields.get("baseline") or {"prompt": 0, "generation": 0}),
                final=None if final is None else _read_final(final),
                earlier=tuple(_read_final(ended) for ended in fields.get("earlier") or ()),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not an instance entry: {exc!r}") from exc


def read_snapshot(
    raw_hash: "Mapping[bytes, bytes]", now_ms: int, drained: "Collection[bytes]" = ()
) -> list[InstanceEntry]:
    """The entries whose lease holds, whatever their status, in the order of their ids. An entry that cannot be read is left out: one bad entry
    must not take the others away; `unreadable_instances` names such. Those in `drained`, which a reclaim has, are draining.
    """
    live = []
    for name, raw in sorted(raw_hash.items()):
        try:
            entry = InstanceEntry.from_json(raw)
        except ValueError:
            continue
        if name in drained and entry.status is InstanceStatus.READY:
            entry = replace(entry, status=InstanceStatus.DRAINING)
        if entry.is_live(now_ms):
            live.append(entry)
    return live


def unreadable_instances(raw_hash: "Mapping[bytes, bytes]") -> list[str]:
    """The ids whose entries cannot be read, for whoever reports them."""
    bad = []
    for instance, raw in sorted(raw_hash.items()):
        try:
            InstanceEntry.from_json(raw)
        except ValueError:
            bad.append(instance.decode(errors="replace"))
    return bad


async def publish(redis: "Redis", entry: InstanceEntry, lease_ms: int = LEASE_MS) -> InstanceEntry:
    """Register or renew: write the entry with a lease that runs from Redis's own clock. Returns it as written. Raises redis.RedisError."""
    now_ms = redis_clock.milliseconds(await redis.time())
    leased = replace(entry, lease_until_ms=now_ms + lease_ms)
    await redis.hset(redis_keys.INSTANCES, entry.instance, leased.to_json())
    return leased


async def find(redis: "Redis", instance: str) -> InstanceEntry | None:
    """What stands under this id, lapsed or not; None when nothing readable does. Raises redis.RedisError."""
    raw = await redis.hget(redis_keys.INSTANCES, instance)
    if raw is None:
        return None
    try:
        return InstanceEntry.from_json(raw)
    except ValueError:
        return None


async def remove(redis: "Redis", instance: str) -> None:
    """Take the entry out. Raises redis.RedisError."""
    await redis.hdel(redis_keys.INSTANCES, instance)


def _counters_json(counters: EngineCounters) -> dict[str, int]:
    return {"prompt": counters.prompt, "generation": counters.generation}


def _final_json(final: FinalCounters) -> dict[str, Any]:
    return {
        "epoch": final.epoch,
        **_counters_json(final.counters),
        "baseline": _counters_json(final.baseline),
        "exact": final.exact,
    }


def _read_counters(fields: dict[str, Any]) -> EngineCounters:
    return EngineCounters(prompt=_count(fields["prompt"]), generation=_count(fields["generation"]))


def _read_final(fields: dict[str, Any]) -> FinalCounters:
    return FinalCounters(
        epoch=_text(fields["epoch"]),
        counters=_read_counters(fields),
        baseline=_read_counters(fields["baseline"]),
        exact=fields.get("exact") is True,
    )


def _read_load(fields: dict[str, Any]) -> EngineLoad:
    return EngineLoad(
        running=_count(fields.get("running", 0)),
        waiting=_count(fields.get("waiting", 0)),
        kv_usage=float(fields.get("kv_usage", 0.0)),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"expected text, got {value!r}")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a count, got {value!r}")
    return value
