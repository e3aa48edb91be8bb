"""The instances of `taas:instances` as the audit needs them. Owns reading their entries; knows no engine and no table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import redis

from billing.wire import redis_clock, redis_keys
from billing.wire.tokens import CounterPair

_NOT_RUNNING: Final = frozenset({"starting", "down"})


@dataclass(frozen=True, slots=True)
class EndedEpoch:
    """The last counters of a run of an engine that has ended. Not `exact`: it may have produced more."""

    epoch: str
    last: CounterPair
    baseline: CounterPair | None
    exact: bool


@dataclass(frozen=True, slots=True)
class EngineInstance:
    """One entry. `alive`: its lease holds, its engine has come up (before that it has no baseline) and has not ended, so its counters can be asked for.

    One added by hand that is `down` has not ended for us: it does not answer, and only its own counters will show whether it started anew.
    `counts`: it tells what each request has produced.
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
    ended: tuple[EndedEpoch, ...]


@dataclass(frozen=True, slots=True)
class Registry:
    """All instances at one moment (`now_ms`, by Redis's clock), and what could not be read, by instance id."""

    instances: tuple[EngineInstance, ...]
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
            instances.append(_instance(orjson.loads(text), now_ms))
        except (ValueError, KeyError, TypeError):
            unreadable.append(name.decode(errors="replace"))
    return Registry(tuple(instances), tuple(unreadable), now_ms)


def _instance(fields: Mapping[str, Any], now_ms: int) -> EngineInstance:
    lease_until_ms = int(fields.get("lease_until_ms", 0))
    ended = [_ended(each) for each in [fields.get("final"), *(fields.get("earlier") or ())] if each]
    unanswering = lease_until_ms == 0 and fields.get("status") == "down"
    return EngineInstance(
        instance=str(fields["instance"]),
        model=str(fields["model"]),
        pool=str(fields["pool"]),
        cell=str(fields["cell"]),
        url=str(fields["url"]),
        key=fields.get("key"),
        epoch=str(fields["epoch"]),
        alive=(lease_until_ms == 0 or lease_until_ms >= now_ms)
        and (unanswering or fields.get("status") not in _NOT_RUNNING),
        counts=fields.get("counts") is True,
        baseline=_pair(fields.get("baseline") or {}),
        ended=tuple(ended),
    )


def _ended(fields: Mapping[str, Any]) -> EndedEpoch:
    baseline = fields.get("baseline")
    return EndedEpoch(
        str(fields["epoch"]),
        _pair(fields),
        _pair(baseline) if baseline is not None else None,
        fields.get("exact") is True,
    )


def _pair(fields: Mapping[str, Any]) -> CounterPair:
    return CounterPair(int(fields.get("prompt", 0)), int(fields.get("generation", 0)))
