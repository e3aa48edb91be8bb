"""What every run of every engine has counted, remembered in SQL. Owns when a run begins and ends; `engine_reading` asks the engines.

A *run* is one life of an engine process. The catalogue names it by the instance's epoch; an engine that restarted without telling
(added by hand) shows by counters that went back, and starts a further run of the same epoch from zero. The last counters of an
ended run are what was polled, or, better, what its worker left in its entry.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import httpx
import redis
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from billing.engine_instances import CounterPair, EndedEpoch, EngineInstance, Registry, read_instances
from billing.engine_reading import Counters, NoCounters, Reading, read_engine
from billing.schema.ledger import engine_counter

# Two processes that poll at once could write an older reading over a newer one, which looks like a restart: one at a time.
_LOCK: Final = 7_461_616
_READERS: Final = 16
_NOW_MS: Final = text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One run and the last that is known of its counters. `state`: `open` · `closed` · `no_counters`."""

    instance: str
    epoch: str
    run: int
    started: str | None
    baseline: CounterPair
    last: CounterPair
    state: str
    exact: bool

    @property
    def produced(self) -> CounterPair:
        """What it has produced since its baseline."""
        return self.last - self.baseline


@dataclass(frozen=True, slots=True)
class Poll:
    """One pass over all instances: the registry, and what each engine that should answer said."""

    registry: Registry
    readings: Mapping[str, Reading]


class CounterPoller:
    """Polls every instance and remembers its counters."""

    def __init__(self, engine: Engine, client: redis.Redis, *, timeout_ms: int) -> None:
        self._engine = engine
        self._client = client
        self._http = httpx.Client(timeout=timeout_ms / 1000, trust_env=False, follow_redirects=False)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="engine-counters")

    def close(self) -> None:
        """Close the connections to the engines."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def poll_once(self) -> Poll:
        """Ask all engines now and store what they say. Waits for a pass of another process."""
        with self._engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            registry = read_instances(self._client)
            alive = [each for each in registry.instances if each.alive]
            answers = self._readers.map(lambda each: read_engine(self._http, each.url, each.key), alive)
            readings = {each.instance: answer for each, answer in zip(alive, answers, strict=True)}
            store_poll(connection, registry.instances, readings)
        return Poll(registry, readings)


def store_poll(connection: Connection, instances: Sequence[EngineInstance], readings: Mapping[str, Reading]) -> None:
    """Close the runs that are no more, take over the counters that workers left, and store the new readings."""
    current = {each.instance: each.epoch for each in instances if each.alive}
    for run in read_runs(connection, state="open"):
        if current.get(run.instance) != run.epoch:
            _set(connection, run, state="closed")
    for each in instances:
        for ended in each.ended:
            _store_ended(connection, each, ended)
        reading = readings.get(each.instance)
        if isinstance(reading, NoCounters):
            _store_no_counters(connection, each)
        elif isinstance(reading, Counters):
            _store_counters(connection, each, reading)


def close_run(connection: Connection, each: EngineInstance, reading: Reading) -> None:
    """The last counters of an instance whose id is about to be used anew. Holds off every poll until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    if isinstance(reading, Counters):
        _store_counters(connection, each, reading)
    for run in read_runs(connection, state="open"):
        if (run.instance, run.epoch) == (each.instance, each.epoch):
            _set(connection, run, state="closed")


def read_runs(connection: Connection, *, state: str | None = None) -> list[EngineRun]:
    """All runs, in the order of instance, epoch and run."""
    query = select(engine_counter).order_by(engine_counter.c.instance, engine_counter.c.epoch, engine_counter.c.run)
    if state is not None:
        query = query.where(engine_counter.c.state == state)
    return [_run(row) for row in connection.execute(query).mappings()]


def _latest(connection: Connection, instance: str, epoch: str) -> EngineRun | None:
    query = (
        select(engine_counter)
        .where(engine_counter.c.instance == instance, engine_counter.c.epoch == epoch)
        .order_by(engine_counter.c.run.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _run(row)


def _store_counters(connection: Connection, each: EngineInstance, reading: Counters) -> None:
    latest = _latest(connection, each.instance, each.epoch)
    if latest is None or latest.state == "no_counters":
        latest = EngineRun(each.instance, each.epoch, 0, None, each.baseline, each.baseline, "open", exact=False)
    if _restarted(latest, reading):
        _put(connection, latest, state="closed")
        zero = CounterPair(0, 0)
        latest = EngineRun(each.instance, each.epoch, latest.run + 1, None, zero, zero, "open", exact=False)
    _put(connection, latest, state="open", last=reading.tokens, started=reading.started)


def _restarted(latest: EngineRun, reading: Counters) -> bool:
    if latest.started is not None and reading.started is not None and latest.started != reading.started:
        return True
    return reading.tokens.prompt < latest.last.prompt or reading.tokens.generation < latest.last.generation


def _store_no_counters(connection: Connection, each: EngineInstance) -> None:
    if _latest(connection, each.instance, each.epoch) is None:
        zero = CounterPair(0, 0)
        _put(
            connection,
            EngineRun(each.instance, each.epoch, 0, None, zero, zero, "no_counters", exact=False),
            state="no_counters",
        )


def _store_ended(connection: Connection, each: EngineInstance, ended: EndedEpoch) -> None:
    latest = _latest(connection, each.instance, ended.epoch)
    if latest is None:
        baseline = ended.baseline
        if baseline is None and ended.epoch == each.epoch:
            baseline = each.baseline
        if baseline is None:
            return  # Never polled, and where it began is not known: the audit reports it.
        latest = EngineRun(each.instance, ended.epoch, 0, None, baseline, baseline, "closed", exact=False)
    elif latest.exact or latest.state == "no_counters":
        return
    _put(connection, latest, state="closed", last=latest.last.at_least(ended.last), exact=ended.exact)


def _put(
    connection: Connection,
    run: EngineRun,
    *,
    state: str,
    last: CounterPair | None = None,
    started: str | None = None,
    exact: bool = False,
) -> None:
    last = run.last if last is None else last
    values: dict[str, Any] = {
        "started": started or run.started,
        "baseline_prompt": run.baseline.prompt,
        "baseline_generation": run.baseline.generation,
        "last_prompt": last.prompt,
        "last_generation": last.generation,
        "state": state,
        "exact": exact,
        "polled_ms": _NOW_MS,
    }
    statement = insert(engine_counter).values(
        instance=run.instance,
        epoch=run.epoch,
        run=run.run,
        **values,
    )
    keys = ["instance", "epoch", "run"]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values))


def _set(connection: Connection, run: EngineRun, *, state: str) -> None:
    same = (
        (engine_counter.c.instance == run.instance)
        & (engine_counter.c.epoch == run.epoch)
        & (engine_counter.c.run == run.run)
    )
    connection.execute(update(engine_counter).where(same).values(state=state))


def _run(row: Mapping[Any, Any]) -> EngineRun:
    return EngineRun(
        row["instance"], row["epoch"], row["run"], row["started"],
        CounterPair(row["baseline_prompt"], row["baseline_generation"]),
        CounterPair(row["last_prompt"], row["last_generation"]),
        row["state"], row["exact"],
    )  # fmt: skip
