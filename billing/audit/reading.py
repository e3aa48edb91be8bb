"""Reads all figures of an audit: what each engine has counted, and where each of its requests is.

The order of reading makes sure that nothing is missed or counted twice while requests come and go. First it
reads where requests are, in the direction in which they move: open, in a stream, in SQL. Then it reads the
engines. Last, for requests that an engine names and that had no event before, it looks for them again.
`balance` computes; nothing is written.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import redis
from sqlalchemy import Connection, Engine, select

from billing.audit.balance import (
    EpochBalance,
    Metered,
    Produced,
    WithoutEvent,
    balance_by_bounds,
    balance_by_request,
)
from billing.audit.balance_rows import EngineState
from billing.audit.engine_counters import CounterPoller, Poll, lost_tokens
from billing.audit.engine_runs import EngineRun, read_runs
from billing.audit.reconcile import Evidence, read_evidence
from billing.audit.request_check import CALIBRATION_ID, read_events, standing
from billing.fleet.engine_reading import Counters, Reading, Unreachable
from billing.schema.catalogue import model
from billing.schema.ledger import usage_total
from billing.usage.busy_cells import BusyCells
from billing.usage.open_requests import OpenRequests, Streams, read_open, read_streams
from billing.wire.tokens import NO_TOKENS, CounterPair

Epoch = tuple[str, str]
"""Instance and epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReading:
    """One reading. `states`: of the epochs that have a balance. `idle`: epochs that have no request anywhere
    on its way. Not `complete`: there was more than could be read.
    """

    balances: tuple[EpochBalance, ...]
    states: Mapping[Epoch, EngineState]
    evidence: tuple[Evidence, ...]
    idle: frozenset[Epoch]
    poll: Poll
    open: OpenRequests
    complete: bool

    def agrees_with(self, other: "AuditReading") -> bool:
        """Whether both leave the same unexplained."""
        residuals = [
            [(each.instance, each.epoch, each.residual) for each in reading.balances]
            for reading in (self, other)
        ]
        return residuals[0] == residuals[1] and self.evidence == other.evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """The figures as read. `recorded`, `without` and `events` are from one snapshot of SQL, taken before the
    engines were asked.
    """

    open: OpenRequests
    streams: Streams
    recorded: Mapping[Epoch, Metered]
    runs: Mapping[Epoch, Sequence[EngineRun]]
    lost: Mapping[tuple[str, str, int], CounterPair]
    counts: Mapping[Epoch, Mapping[str, CounterPair]]
    without: Mapping[Epoch, WithoutEvent]
    events: frozenset[str]
    contexts: Mapping[str, int]
    poll: Poll


def read_all(engine: Engine, client: redis.Redis, poller: CounterPoller, busy: BusyCells) -> AuditReading:
    """Read now. Raises what SQL and Redis raise."""
    opened, streams = _read_open(client, busy)
    with snapshot(engine) as before:
        recorded = _read_totals(before)
        poll = poller.poll_once()
        with snapshot(engine) as now:
            runs = _by_epoch(read_runs(now))
            counts = _counts(runs, poll)
            events = frozenset(
                row["request_id"] for row in read_events(before, [*opened.by_id, *streams.by_id])
            )
            facts = _Facts(
                open=opened,
                streams=streams,
                recorded=recorded,
                runs=runs,
                lost=_lost(now, runs, poll),
                counts=counts,
                without=_without_event(before, now, client, busy, opened, streams, counts),
                events=events,
                contexts={
                    row.name: row.context_tokens
                    for row in now.execute(select(model.c.name, model.c.context_tokens))
                },
                poll=poll,
            )
            # If an engine counts its requests, each is compared with its event and no evidence is needed.
            evidence = tuple(each for each in read_evidence(now) if (each.instance, each.epoch) not in counts)
    balances = _balances(facts)
    complete = streams.complete and not opened.unreadable
    return AuditReading(
        balances=balances,
        states=_states(balances, facts),
        evidence=evidence,
        idle=_idle(balances, facts),
        poll=poll,
        open=opened,
        complete=complete,
    )


def _read_open(client: redis.Redis, busy: BusyCells) -> tuple[OpenRequests, Streams]:
    """Open requests first: those that end meanwhile are in a stream then."""
    cells = busy.names(fresh=True)
    return read_open(client, cells), read_streams(client, cells)


def snapshot(engine: Engine) -> Connection:
    """A connection that sees one snapshot of SQL, taken at its first query."""
    return engine.connect().execution_options(isolation_level="REPEATABLE READ")


def _without_event(
    before: Connection,
    now: Connection,
    client: redis.Redis,
    busy: BusyCells,
    opened: OpenRequests,
    streams: Streams,
    counts: Mapping[Epoch, Mapping[str, CounterPair]],
) -> dict[Epoch, WithoutEvent]:
    """Of the requests that engines name: those that had no event in the snapshot, and which of those are
    known elsewhere.
    """
    stands = {epoch: standing(before, *epoch, spoken_of) for epoch, spoken_of in counts.items()}
    later_open, later_streams = _read_open(client, busy)
    known = {*opened.by_id, *streams.by_id, *later_open.by_id, *later_streams.by_id}
    unknown = [name for each in stands.values() for name in each.without if name not in known]
    known |= {row["request_id"] for row in read_events(now, unknown)}
    known |= {name for name in unknown if name.startswith(CALIBRATION_ID)}
    found = {}
    for epoch, stand in stands.items():
        forgotten = (
            each.tokens
            for name, each in streams.by_id.items()
            if (each.instance, each.epoch) == epoch
            and name not in counts[epoch]
            and name not in stand.recorded
        )
        found[epoch] = WithoutEvent(stand.without, known, sum(forgotten, stand.to_complete))
    return found


def _counts(runs: Mapping[Epoch, Sequence[EngineRun]], poll: Poll) -> dict[Epoch, dict[str, CounterPair]]:
    """The engines' counts of their requests: current ones if they answer, else those of their last
    reading.
    """
    found: dict[Epoch, dict[str, CounterPair]] = {}
    for epoch, own in runs.items():
        for run in own:
            if run.requests is not None and not run.exact:
                found.setdefault(epoch, {}).update(run.requests.counts)
    for each in poll.registry.instances:
        if each.instance in poll.requests:
            spoken_of = found.setdefault((each.instance, each.epoch), {})
            for run in runs.get((each.instance, each.epoch), ()):
                if run.state == "open" and run.requests is not None:
                    # Another process may have polled since; this reading counts.
                    for name in run.requests.counts:
                        spoken_of.pop(name, None)
            spoken_of.update(poll.requests[each.instance])
    return found


def _lost(
    now: Connection, runs: Mapping[Epoch, Sequence[EngineRun]], poll: Poll
) -> dict[tuple[str, str, int], CounterPair]:
    """What engines that died or do not answer have produced after their last reading, as far as requests are
    accounted for with it.
    """
    answering = {
        (each.instance, each.epoch) for each in poll.registry.instances if each.instance in poll.requests
    }
    found: dict[tuple[str, str, int], CounterPair] = {}
    for epoch, own in runs.items():
        spoken_of = poll.requests[epoch[0]] if epoch in answering else ()
        silent = [run for run in own if not (run.state == "open" and epoch in answering)]
        found |= {(*epoch, run): tokens for run, tokens in lost_tokens(now, silent, spoken_of).items()}
    return found


def _balances(facts: _Facts) -> tuple[EpochBalance, ...]:
    poll = facts.poll
    alive = {(each.instance, each.epoch) for each in poll.registry.instances if each.alive}
    open_there = {(each.instance, each.epoch) for each in facts.open.by_id.values()}
    on_the_way = {(each.instance, each.epoch) for each in facts.streams.by_id.values()}
    found = []
    for epoch in sorted({*facts.runs, *facts.recorded, *open_there, *on_the_way}):
        reading = poll.readings.get(epoch[0]) if epoch in alive else None
        recorded = facts.recorded.get(epoch, Metered())
        produced = _produced(facts.runs.get(epoch, ()), reading, facts.lost)
        if epoch in facts.without:
            found.append(balance_by_request(*epoch, produced, recorded, facts.without[epoch]))
        else:
            opened, room = _open_tokens(epoch, facts)
            metered = Metered(recorded.billed, recorded.absorbed, opened)
            found.append(balance_by_bounds(*epoch, produced, metered, room))
    return tuple(found)


def _produced(
    runs: Sequence[EngineRun], reading: Reading | None, lost: Mapping[tuple[str, str, int], CounterPair]
) -> Produced:
    counted = beyond = NO_TOKENS
    cut_off = not runs or isinstance(reading, Unreachable)
    for run in runs:
        if run.state == "open" and isinstance(reading, Counters):
            counted += reading.tokens - run.baseline
        elif run.requests is not None and not run.exact:
            counted += run.requests.counted - run.baseline
            beyond += lost.get(_key(run), NO_TOKENS)
        else:
            counted += run.produced
            cut_off = cut_off or (run.state == "closed" and not run.exact)
    uncounted = bool(runs) and all(run.state == "no_counters" for run in runs)
    return Produced(counted, beyond, cut_off, uncounted)


def _open_tokens(epoch: Epoch, facts: _Facts) -> tuple[CounterPair, CounterPair]:
    """What requests of an engine that does not count them had produced at their last checkpoint, and what
    they can have produced since.
    """
    known = room = NO_TOKENS
    for name, way in facts.streams.by_id.items():
        if (way.instance, way.epoch) == epoch and name not in facts.events:
            known += way.tokens
    for name, each in facts.open.by_id.items():
        if (each.instance, each.epoch) != epoch or name in facts.streams.by_id or name in facts.events:
            continue
        whole = facts.contexts.get(each.model, 0) * each.samples
        known += each.tokens
        room += CounterPair(max(0, whole - each.tokens.prompt), max(0, whole - each.tokens.generation))
    return known, room


def _states(balances: Sequence[EpochBalance], facts: _Facts) -> dict[Epoch, EngineState]:
    alive = {(each.instance, each.epoch) for each in facts.poll.registry.instances if each.alive}
    running = Counter(
        (each.instance, each.epoch)
        for name, each in facts.open.by_id.items()
        if name not in facts.streams.by_id and name not in facts.events
    )
    since_ms: dict[Epoch, list[int]] = defaultdict(list)
    for name, each in facts.streams.by_id.items():
        if name not in facts.events:
            since_ms[each.instance, each.epoch].append(each.since_ms)
    states = {}
    for epoch in ((balance.instance, balance.epoch) for balance in balances):
        read = isinstance(facts.poll.readings.get(epoch[0]), Counters)
        waiting = since_ms.get(epoch, ())
        states[epoch] = EngineState(
            run=max((run.run for run in facts.runs.get(epoch, ())), default=0),
            counters="ended" if epoch not in alive else "read" if read else "silent",
            running=running[epoch],
            waiting=len(waiting),
            lag_ms=max(0, facts.poll.registry.now_ms - min(waiting)) if waiting else 0,
        )
    return states


def _idle(balances: Sequence[EpochBalance], facts: _Facts) -> frozenset[Epoch]:
    """Epochs without open requests whose engine has ended, or reports that it has nothing to do."""
    working = {(each.instance, each.epoch) for each in facts.streams.by_id.values()}
    for each in facts.poll.registry.instances:
        reading = facts.poll.readings.get(each.instance)
        if each.alive and not (isinstance(reading, Counters) and not reading.busy):
            working.add((each.instance, each.epoch))
    engines = {(balance.instance, balance.epoch) for balance in balances}
    # It is unknown to which engine an unreadable reservation belongs, so no engine counts as idle.
    return frozenset() if facts.open.unreadable else frozenset(engines - working - set(facts.open.requests))


def _read_totals(connection: Connection) -> dict[Epoch, Metered]:
    return {
        (row["instance"], row["epoch"]): Metered(
            CounterPair(row["billed_prompt"], row["billed_output"]),
            CounterPair(row["absorbed_prompt"], row["absorbed_output"]),
        )
        for row in connection.execute(select(usage_total)).mappings()
    }


def _by_epoch(runs: Sequence[EngineRun]) -> dict[Epoch, list[EngineRun]]:
    found: dict[Epoch, list[EngineRun]] = defaultdict(list)
    for run in runs:
        found[run.instance, run.epoch].append(run)
    return dict(found)


def _key(run: EngineRun) -> tuple[str, str, int]:
    return run.instance, run.epoch, run.run
