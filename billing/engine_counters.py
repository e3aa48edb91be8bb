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
from sqlalchemy import ColumnElement, Connection, Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from billing.engine_instances import NO_TOKENS, CounterPair, EndedEpoch, EngineInstance, Registry, read_instances
from billing.engine_reading import Counters, NoCounters, Reading
from billing.engine_request_counts import read_instance
from billing.request_check import EngineRef, check_requests, read_events
from billing.schema.ledger import engine_counter, usage_event

# Two processes that poll at once could write an older reading over a newer one, which looks like a restart: one at a time.
_LOCK: Final = 7_461_616
_READERS: Final = 16
# Requests of one engine whose event has not come yet, that are remembered: minutes of a busy one.
_UNRECORDED_MAX: Final = 20_000
_ENDED_CHECKED_MS: Final = 3_600_000
_NOW_MS: Final = text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


@dataclass(frozen=True, slots=True)
class RequestsAt:
    """What an engine said of its requests, of those that ran and of those that had no event yet; when that was by Redis's clock, and what it had
    counted in all in that moment. Of an engine that died its worker may have read later counters: of those no request can be told.
    """

    at_ms: int
    counted: CounterPair
    counts: Mapping[str, CounterPair]

    def to_json(self) -> dict[str, Any]:
        """The column `requests`."""
        counts = {name: [each.prompt, each.generation] for name, each in self.counts.items()}
        return {"at_ms": self.at_ms, "counted": [self.counted.prompt, self.counted.generation], "counts": counts}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any] | None) -> "RequestsAt | None":
        """Read the column."""
        if fields is None:
            return None
        counted = CounterPair(*fields["counted"])
        return cls(int(fields["at_ms"]), counted, {name: CounterPair(*pair) for name, pair in fields["counts"].items()})


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One run and the last that is known of its counters. `state`: `open` · `closed` · `no_counters`. `requests`: what it said of its requests in
    the same moment, where it counts them.
    """

    instance: str
    epoch: str
    run: int
    started: str | None
    baseline: CounterPair
    last: CounterPair
    state: str
    exact: bool
    requests: "RequestsAt | None" = None

    @property
    def produced(self) -> CounterPair:
        """What it has produced since its baseline."""
        return self.last - self.baseline


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What one request had produced beyond its event, absorbed just now."""

    request_id: str
    instance: str
    epoch: str
    tokens: CounterPair


@dataclass(frozen=True, slots=True)
class Poll:
    """One pass over all instances: the registry, what each engine that should answer said, what it says of each request that may have no event
    yet, and what was absorbed.
    """

    registry: Registry
    readings: Mapping[str, Reading]
    requests: Mapping[str, Mapping[str, CounterPair]]
    absorbed: tuple[Absorbed, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where reading one engine's requests stands: the last page, and those of before that had no event yet."""

    boot: str
    sequence: int
    unrecorded: Mapping[str, CounterPair]


class CounterPoller:
    """Polls every instance, remembers its counters, and holds its requests against their events."""

    def __init__(self, engine: Engine, client: redis.Redis, *, timeout_ms: int) -> None:
        self._engine = engine
        self._client = client
        self._http = httpx.Client(timeout=timeout_ms / 1000, trust_env=False, follow_redirects=False)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="engine-counters")
        self._seen: dict[tuple[str, str], _Seen] = {}

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
            answers = self._readers.map(self._read, alive)
            readings = {each.instance: answer for each, answer in zip(alive, answers, strict=True)}
            store_poll(connection, registry.instances, readings)
            requests: dict[str, Mapping[str, CounterPair]] = {}
            absorbed: list[Absorbed] = []
            seen: dict[tuple[str, str], _Seen] = {}
            for each in alive:
                reading = readings[each.instance]
                if isinstance(reading, Counters) and reading.requests is not None:
                    key = each.instance, each.epoch
                    requests[each.instance], seen[key] = self._take(
                        connection, each, reading, registry.now_ms, absorbed
                    )
                elif (each.instance, each.epoch) in self._seen:
                    seen[each.instance, each.epoch] = self._seen[each.instance, each.epoch]
            absorbed += _check_ended_runs(connection, registry.now_ms)
        self._seen = seen
        return Poll(registry, readings, requests, tuple(absorbed))

    def _read(self, instance: EngineInstance) -> Reading:
        """One look; from the beginning where its process is another than at the last look."""
        seen = self._seen.get((instance.instance, instance.epoch))
        reading = read_instance(self._http, instance, after=0 if seen is None else seen.sequence)
        if isinstance(reading, Counters) and seen is not None and reading.started != seen.boot:
            return read_instance(self._http, instance)
        return reading

    def _take(
        self, connection: Connection, each: EngineInstance, reading: Counters, now_ms: int, absorbed: list[Absorbed]
    ) -> tuple[dict[str, CounterPair], _Seen]:
        """Check the requests that have ended, and store what is left of them beside the counters of the same moment."""
        assert reading.requests is not None
        before = self._seen.get((each.instance, each.epoch))
        boot = reading.started or ""
        carried = before.unrecorded if before is not None and before.boot == boot else {}
        running = reading.requests.running
        ended = {
            name: count
            for name, count in {**carried, **reading.requests.finished}.items()
            if name not in running and count != NO_TOKENS
        }
        checked = check_requests(
            connection, EngineRef(each.instance, each.epoch, each.model, each.pool, each.cell), ended
        )
        absorbed += [Absorbed(name, each.instance, each.epoch, tokens) for name, tokens in checked.absorbed.items()]
        unrecorded = {name: count for name, count in ended.items() if name not in checked.recorded}
        newest = dict(list(unrecorded.items())[-_UNRECORDED_MAX:])
        _store_requests(connection, each, RequestsAt(now_ms, reading.tokens, {**newest, **running}))
        return {**ended, **running}, _Seen(boot, reading.requests.sequence, newest)


def lost_tokens(connection: Connection, run: EngineRun) -> CounterPair:
    """What requests are accounted for with beyond the last look at an engine that died: it produced that, and no counter has it."""
    assert run.requests is not None
    here = (usage_event.c.instance == run.instance) & (usage_event.c.epoch == run.epoch)
    later = select(usage_event.c.request_id, usage_event.c.produced_prompt, usage_event.c.produced_output).where(
        here, usage_event.c.kind == "request", usage_event.c.ended_ms > run.requests.at_ms
    )
    recorded = {
        row.request_id: CounterPair(row.produced_prompt, row.produced_output) for row in connection.execute(later)
    }
    for row in read_events(connection, list(run.requests.counts)):
        if (row["instance"], row["epoch"]) == (run.instance, run.epoch):
            recorded[row["request_id"]] = CounterPair(row["produced_prompt"], row["produced_output"])
    beyond = (
        each.at_least(run.requests.counts.get(name, NO_TOKENS)) - run.requests.counts.get(name, NO_TOKENS)
        for name, each in recorded.items()
    )
    return sum(beyond, NO_TOKENS)


def _check_ended_runs(connection: Connection, now_ms: int) -> list[Absorbed]:
    """Of engines that have ended: the requests that they had last spoken of, held against the events that have come since. An hour later all
    have come, and the run is as exact as it will be.
    """
    absorbed: list[Absorbed] = []
    query = select(engine_counter).where(engine_counter.c.state == "closed", engine_counter.c.requests.is_not(None))
    for run in [_run(row) for row in connection.execute(query).mappings()]:
        assert run.requests is not None
        model = connection.execute(
            select(usage_event.c.model, usage_event.c.pool, usage_event.c.cell)
            .where(usage_event.c.instance == run.instance, usage_event.c.epoch == run.epoch)
            .limit(1)
        ).one_or_none()
        if model is None:
            continue
        engine = EngineRef(run.instance, run.epoch, model.model, model.pool, model.cell)
        short = _short_of(connection, engine, run.requests.counts)
        checked = check_requests(connection, engine, short)
        absorbed += [Absorbed(name, run.instance, run.epoch, tokens) for name, tokens in checked.absorbed.items()]
        if run.requests.at_ms < now_ms - _ENDED_CHECKED_MS:
            last = run.last if run.exact else run.requests.counted + lost_tokens(connection, run)
            _put(connection, run, state="closed", exact=True, last=last)
            connection.execute(update(engine_counter).where(_same(run)).values(requests=None))
    return absorbed


def _short_of(connection: Connection, engine: EngineRef, counts: Mapping[str, CounterPair]) -> dict[str, CounterPair]:
    """Those whose event says less than the engine had said: after its last word an engine may have gone on, so more is no fault."""
    events = {row["request_id"]: row for row in read_events(connection, list(counts))}
    short = {}
    for name, count in counts.items():
        row = events.get(name)
        if row is None:
            continue
        here = (row["instance"], row["epoch"]) == (engine.instance, engine.epoch)
        had = CounterPair(row["produced_prompt"], row["produced_output"]) if here else NO_TOKENS
        if had.at_least(count) != had:
            short[name] = had.at_least(count)
    return short


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


def _store_requests(connection: Connection, each: EngineInstance, requests: RequestsAt) -> None:
    latest = _latest(connection, each.instance, each.epoch)
    assert latest is not None, "its counters were stored just now"
    connection.execute(update(engine_counter).where(_same(latest)).values(requests=requests.to_json()))


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
    connection.execute(update(engine_counter).where(_same(run)).values(state=state))


def _same(run: EngineRun) -> ColumnElement[bool]:
    return (
        (engine_counter.c.instance == run.instance)
        & (engine_counter.c.epoch == run.epoch)
        & (engine_counter.c.run == run.run)
    )


def _run(row: Mapping[Any, Any]) -> EngineRun:
    return EngineRun(
        row["instance"], row["epoch"], row["run"], row["started"],
        CounterPair(row["baseline_prompt"], row["baseline_generation"]),
        CounterPair(row["last_prompt"], row["last_generation"]),
        row["state"], row["exact"], RequestsAt.from_json(row["requests"]),
    )  # fmt: skip
