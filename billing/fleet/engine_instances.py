"""The entries of `taas:instances` as the audit needs them. It only reads entries; it knows no engine and no
table.
"""

from dataclasses import dataclass, field
from typing import Final

import redis

from billing.wire import redis_clock, redis_keys
from billing.wire.instance_entry import FinalCounters, InstanceEntry, InstanceStatus
from billing.wire.tokens import CounterPair

_NOT_RUNNING: Final = frozenset({InstanceStatus.STARTING, InstanceStatus.DOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedInstance:
    """One entry. `alive`: its lease holds, its engine has come up (before that it has no baseline) and has
    not ended, so its counters can be read.

    An instance added by hand that is `down` has not ended for the audit: it does not answer, and only its own
    counters will show whether it has restarted. `counts`: it reports what each request has produced.
    `has_counters`: false for a provider, which is not asked.
    """

    instance: str
    model: str
    pool: str
    cell: str
    url: str
    key: str | None = field(repr=False)
    epoch: str
    alive: bool
    counts: bool
    baseline: CounterPair
    ended: tuple[FinalCounters, ...]
    has_counters: bool = True


@dataclass(frozen=True, slots=True)
class Registry:
    """All instances at one moment (`now_ms`, by Redis's clock), and the ids of entries that could not be
    read.
    """

    instances: tuple[AuditedInstance, ...]
    unreadable: tuple[str, ...]
    now_ms: int


def read_instances(client: redis.Redis) -> Registry:
    """Read the hash with the server's clock. The client must not decode responses."""
    with client.pipeline(transaction=False) as read:
        read.time()
        read.hgetall(redis_keys.INSTANCES)
        clock, entries = read.execute()
    now_ms = redis_clock.milliseconds(clock)
    instances, unreadable = [], []
    for name, text in sorted(entries.items()):
        try:
            instances.append(_instance(InstanceEntry.from_json(text), now_ms))
        except ValueError:
            unreadable.append(name.decode(errors="replace"))
    return Registry(tuple(instances), tuple(unreadable), now_ms)


def _instance(entry: InstanceEntry, now_ms: int) -> AuditedInstance:
    unanswering = entry.lease_until_ms == 0 and entry.status is InstanceStatus.DOWN
    ended = entry.earlier if entry.final is None else (entry.final, *entry.earlier)
    return AuditedInstance(
        instance=entry.instance,
        model=entry.model,
        pool=entry.pool,
        cell=entry.cell,
        url=entry.url,
        key=entry.key,
        epoch=entry.epoch,
        alive=entry.is_live(now_ms) and (unanswering or entry.status not in _NOT_RUNNING),
        counts=entry.counts,
        baseline=entry.baseline,
        ended=ended,
        has_counters=not entry.is_provider,
    )
