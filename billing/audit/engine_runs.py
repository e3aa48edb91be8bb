"""The counters of every run of every engine, remembered in SQL. It owns the table, and when a run begins and
ends.

A *run* is one life of an engine process. The catalogue names it by the instance's epoch. If an engine that
was added by hand restarts, its counters go back; that begins another run of the same epoch at zero. The last
counters of an ended run are those that were polled or, better, those that its worker left in its entry.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.fleet.engine_instances import AuditedInstance
from billing.fleet.engine_reading import Counters, NoCounters, Reading
from billing.schema.clock import NOW_MS
from billing.schema.ledger import engine_counter
from billing.schema.locks import AdvisoryLock
from billing.wire.instance_entry import FinalCounters
from billing.wire.tokens import CounterPair


@dataclass(frozen=True, slots=True)
class RequestsAt:
    """What an engine said of its requests at one moment: those that ran, and those whose event had not come
    or ended later; the moment by Redis's clock; and its counters at that moment. If the engine died, its
    worker may have read later counters, which say nothing of single requests. Once a later run of the same
    epoch has answered: `until_ms`, after which no request began on this run, and `later`, requests that began
    before and that a later run names.
    """

    at_ms: int
    counted: CounterPair
    counts: Mapping[str, CounterPair]
    until_ms: int | None = None
    later: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """The column `requests`."""
        counts = {name: [each.prompt, each.generation] for name, each in self.counts.items()}
        fields = {
            "at_ms": self.at_ms,
            "counted": [self.counted.prompt, self.counted.generation],
            "counts": counts,
        }
        if self.until_ms is not None:
            fields |= {"until_ms": self.until_ms, "later": sorted(self.later)}
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any] | None) -> "RequestsAt | None":
        """Read the column."""
        if fields is None:
            return None
        counts = {name: CounterPair(*pair) for name, pair in fields["counts"].items()}
        later = frozenset(fields.get("later", ()))
        return cls(
            int(fields["at_ms"]), CounterPair(*fields["counted"]), counts, fields.get("until_ms"), later
        )

    def may_have_run(self, request_id: str, started_ms: int, ended_ms: int) -> bool:
        """Whether a request of this epoch that the run had not named may have run here after its last
        reading.
        """
        if ended_ms <= self.at_ms or request_id in self.later:
            return False
        return self.until_ms is None or started_ms <= self.until_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """One run and its last known counters. `state`: `open`, `closed` or `no_counters`. `requests`: its
    requests at the same moment, if it counts them.
    """

    instance: str
    epoch: str
    run: int
    started: str | None
    baseline: CounterPair
    last: CounterPair
    state: str
    exact: bool
    requests: RequestsAt | None = None

    @classmethod
    def new(
        cls, instance: str, epoch: str, baseline: CounterPair, *, run: int = 0, state: str = "open"
    ) -> "EngineRun":
        """One that has not been read yet."""
        return cls(
            instance=instance,
            epoch=epoch,
            run=run,
            started=None,
            baseline=baseline,
            last=baseline,
            state=state,
            exact=False,
        )

    @property
    def produced(self) -> CounterPair:
        """What it has produced since its baseline."""
        return self.last - self.baseline


def hold_off_polls(connection: Connection) -> None:
    """Block polls of all processes until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.ENGINE_RUNS)))


def store_poll(
    connection: Connection, instances: Sequence[AuditedInstance], readings: Mapping[str, Reading]
) -> None:
    """Close the runs that have ended, take the final counters that workers left, and store the new
    readings.
    """
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


def close_run(connection: Connection, each: AuditedInstance, reading: Reading) -> None:
    """Store the last counters of an instance whose id is about to be used again. Blocks all polls until the
    transaction ends.
    """
    hold_off_polls(connection)
    if isinstance(reading, Counters):
        _store_counters(connection, each, reading)
    for run in read_runs(connection, state="open"):
        if (run.instance, run.epoch) == (each.instance, each.epoch):
            _set(connection, run, state="closed")


def store_requests(connection: Connection, run: EngineRun, requests: RequestsAt | None) -> None:
    """Store a run's requests; None once nothing more can be learnt of them."""
    values = None if requests is None else requests.to_json()
    connection.execute(update(engine_counter).where(_same(run)).values(requests=values))


def end_run(connection: Connection, run: EngineRun, last: CounterPair) -> None:
    """Mark a closed run as as exact as it will get: its requests are no longer needed."""
    _put(connection, run, state="closed", exact=True, last=last)
    store_requests(connection, run, None)


def note_later_run(
    connection: Connection,
    latest: EngineRun,
    until_ms: int,
    spoken_of: Iterable[str],
    began_ms: Mapping[str, int],
) -> None:
    """Separate the requests of earlier runs of an epoch from those of the latest run, which has just named
    some. `until_ms`: by when it had answered. `began_ms`: the start of those requests that have an event.
    """
    if latest.run == 0:
        return
    for run in read_runs(connection, epoch=(latest.instance, latest.epoch), with_requests=True):
        before = run.requests
        if run.run >= latest.run or before is None or run.exact:
            continue
        if before.until_ms is None:
            after = replace(before, until_ms=until_ms, later=frozenset(spoken_of))
        else:
            late = (name for name, began in began_ms.items() if began <= before.until_ms)
            after = replace(before, later=before.later.union(late))
        if after != before:
            store_requests(connection, run, after)


def latest_run(connection: Connection, instance: str, epoch: str) -> EngineRun | None:
    """The newest run of an epoch."""
    query = (
        select(engine_counter)
        .where(engine_counter.c.instance == instance, engine_counter.c.epoch == epoch)
        .order_by(engine_counter.c.run.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _run(row)


def read_runs(
    connection: Connection,
    *,
    state: str | None = None,
    epoch: tuple[str, str] | None = None,
    with_requests: bool = False,
) -> list[EngineRun]:
    """All runs, those of one instance's epoch, or those with requests that are not clear yet; by instance,
    epoch and run.
    """
    query = select(engine_counter).order_by(
        engine_counter.c.instance, engine_counter.c.epoch, engine_counter.c.run
    )
    if state is not None:
        query = query.where(engine_counter.c.state == state)
    if epoch is not None:
        query = query.where(engine_counter.c.instance == epoch[0], engine_counter.c.epoch == epoch[1])
    if with_requests:
        query = query.where(engine_counter.c.requests.is_not(None))
    return [_run(row) for row in connection.execute(query).mappings()]


def _store_counters(connection: Connection, each: AuditedInstance, reading: Counters) -> None:
    latest = latest_run(connection, each.instance, each.epoch)
    if latest is None or latest.state == "no_counters":
        latest = EngineRun.new(each.instance, each.epoch, each.baseline)
    if _restarted(latest, reading):
        _put(connection, latest, state="closed")
        latest = EngineRun.new(each.instance, each.epoch, CounterPair(0, 0), run=latest.run + 1)
    _put(connection, latest, state="open", last=reading.tokens, started=reading.started)


def _restarted(latest: EngineRun, reading: Counters) -> bool:
    if latest.started is not None and reading.started is not None and latest.started != reading.started:
        return True
    return reading.tokens.prompt < latest.last.prompt or reading.tokens.generation < latest.last.generation


def _store_no_counters(connection: Connection, each: AuditedInstance) -> None:
    if latest_run(connection, each.instance, each.epoch) is None:
        run = EngineRun.new(each.instance, each.epoch, CounterPair(0, 0), state="no_counters")
        _put(connection, run, state="no_counters")


def _store_ended(connection: Connection, each: AuditedInstance, ended: FinalCounters) -> None:
    latest = latest_run(connection, each.instance, ended.epoch)
    if latest is None:
        latest = EngineRun.new(each.instance, ended.epoch, ended.baseline, state="closed")
    elif latest.exact or latest.state == "no_counters":
        return
    _put(connection, latest, state="closed", last=latest.last.at_least(ended.counters), exact=ended.exact)


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
        "polled_ms": NOW_MS,
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
        instance=row["instance"],
        epoch=row["epoch"],
        run=row["run"],
        started=row["started"],
        baseline=CounterPair(row["baseline_prompt"], row["baseline_generation"]),
        last=CounterPair(row["last_prompt"], row["last_generation"]),
        state=row["state"],
        exact=row["exact"],
        requests=RequestsAt.from_json(row["requests"]),
    )
