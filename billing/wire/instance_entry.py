"""An entry of `taas:instances`: an engine that can serve requests, as written by its worker or the catalogue.
It owns the entry's form.

It does not know how an engine runs or how a gateway chooses. Pure: the reader brings the hash and the time
(Redis's clock, ms). An entry is renewed by writing it again. A dead worker's entry counts no more once its
lease has lapsed, and billing removes it a day later.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from billing.wire.engine_kinds import KINDS, VLLM, is_provider
from billing.wire.tokens import NO_TOKENS, CounterPair

# The path at which an engine reports what each request has produced, if it does: `serving/vllm_middleware`.
REQUEST_COUNTS_PATH: Final = "/taas/request_counts"


# In an engine's name for an adapter: before the digest of its files.
FILES_SEPARATOR: Final = "@"


class InstanceStatus(StrEnum):
    """Only `ready` instances get new requests; `draining` ones finish those that they have."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load that an engine reports: requests running and waiting, and the part of its KV cache in use (0
    to 1). If one server runs several engines, `kv_usage` is that of the fullest.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


@dataclass(frozen=True, slots=True)
class FinalCounters:
    """The last counters of an engine that no longer runs, as read (without subtracting its baseline). Not
    `exact`: it died or was cut off, and may have produced more than was read.
    """

    epoch: str
    counters: CounterPair
    baseline: CounterPair
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceEntry:
    """One instance in the registry. `epoch`: changes with each start of the engine. `baseline`: its counters
    before any tenant's request. `priority`: it schedules by priority, so requests may be sent with one.
    `counts`: it reports what each request has produced, by its id. `final`: set once this epoch has ended.
    `earlier`: ended epochs of the same instance, newest first. `has_metrics`: its engine has a metrics page,
    or was never asked for it. `engine`: the kind of engine (`billing.wire.engine_kinds`). `engine_model`: its
    name for the model, None if that is the name in the model's entry. `max_concurrency`: its slots, None if a
    calibration says how many it has. `routes`: those that it serves, None for all of its model's. `own_user`:
    whether it has an OS user of its own; None if its model is not private. `adapters`: those that its engine
    has loaded, with the engine's names for them. `refused_adapters`: those that it could not load, and why.
    `cache_events`: its worker tells what its prefix cache has lost, if a request says which prompt it has.
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
    baseline: CounterPair = NO_TOKENS
    final: FinalCounters | None = None
    earlier: tuple[FinalCounters, ...] = ()
    has_metrics: bool = True
    engine: str = VLLM
    engine_model: str | None = None
    max_concurrency: int | None = None
    routes: frozenset[str] | None = None
    own_user: bool | None = None
    cache_events: bool = False
    adapters: Mapping[str, str] = field(default_factory=dict, hash=False)
    refused_adapters: Mapping[str, str] = field(default_factory=dict, hash=False)

    def by_model(self) -> Iterator["InstanceEntry"]:
        """Itself, and for each adapter itself as an instance of that model."""
        yield self
        for name, engine_name in self.adapters.items():
            yield replace(self, model=name, engine_model=engine_name, adapters={})

    @property
    def is_provider(self) -> bool:
        """Whether it is somebody else's API: without counters, metrics and calibration."""
        return is_provider(self.engine)

    def serves(self, route: str) -> bool:
        """Whether it serves this route, if its model does. One of a kind that is not known here serves
        none.
        """
        kind = KINDS.get(self.engine)
        return kind is not None and route in kind.routes and (self.routes is None or route in self.routes)

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
                "engine": self.engine,
                "engine_model": self.engine_model,
                "max_concurrency": self.max_concurrency,
                "routes": None if self.routes is None else sorted(self.routes),
                "own_user": self.own_user,
                "cache_events": self.cache_events,
                "adapters": self.adapters,
                "refused_adapters": self.refused_adapters,
                "epoch": self.epoch,
                "status": self.status.value,
                "lease_until_ms": self.lease_until_ms,
                "abort": self.abort,
                "priority": self.priority,
                "counts": self.counts,
                "metrics": self.has_metrics,
                "load": asdict(self.load),
                "baseline": _counters_json(self.baseline),
                "final": None if self.final is None else _final_json(self.final),
                "earlier": [_final_json(ended) for ended in self.earlier],
            }
        )

    @classmethod
    def from_json(cls, raw: bytes | str) -> "InstanceEntry":
        """Read an entry; unknown fields are ignored, so that old and new processes run side by side.
        ValueError when it is not one.
        """
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
                has_metrics=fields.get("metrics") is not False,
                engine=_text(fields.get("engine", VLLM)),
                engine_model=None if fields.get("engine_model") is None else _text(fields["engine_model"]),
                max_concurrency=None
                if fields.get("max_concurrency") is None
                else _count(fields["max_concurrency"]),
                routes=None if fields.get("routes") is None else frozenset(map(_text, fields["routes"])),
                own_user=fields.get("own_user"),
                cache_events=fields.get("cache_events") is True,
                adapters=_texts(fields.get("adapters")),
                refused_adapters=_texts(fields.get("refused_adapters")),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not an instance entry: {exc!r}") from exc


def read_snapshot(
    raw_hash: Mapping[bytes, bytes],
    now_ms: int,
    drained: Collection[bytes] = (),
    holds: Callable[[InstanceEntry, int], bool] = InstanceEntry.is_live,
) -> list[InstanceEntry]:
    """The entries whose lease holds, as `holds` says, whatever their status, in the order of their ids. An
    entry that cannot be read is left out: one bad entry must not take the others away. Those in `drained`,
    which a reclaim has, are draining.
    """
    live = []
    for name, raw in sorted(raw_hash.items()):
        try:
            entry = InstanceEntry.from_json(raw)
        except ValueError:
            continue
        if name in drained and entry.status is InstanceStatus.READY:
            entry = replace(entry, status=InstanceStatus.DRAINING)
        if holds(entry, now_ms):
            live.append(entry)
    return live


def lease_of(raw: bytes | str) -> int | None:
    """Until when an entry's lease holds, also where another version has written the rest of it; None where
    there is nothing to read.
    """
    try:
        return _count(orjson.loads(raw)["lease_until_ms"])
    except (ValueError, KeyError, TypeError):
        return None


def _counters_json(counters: CounterPair) -> dict[str, int]:
    return {"prompt": counters.prompt, "generation": counters.generation}


def _final_json(final: FinalCounters) -> dict[str, Any]:
    return {
        "epoch": final.epoch,
        **_counters_json(final.counters),
        "baseline": _counters_json(final.baseline),
        "exact": final.exact,
    }


def _read_counters(fields: dict[str, Any]) -> CounterPair:
    return CounterPair(prompt=_count(fields["prompt"]), generation=_count(fields["generation"]))


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


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict | None):
        raise TypeError(f"expected an object, got {value!r}")
    return {_text(name): _text(each) for name, each in (value or {}).items()}


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a count, got {value!r}")
    return value
