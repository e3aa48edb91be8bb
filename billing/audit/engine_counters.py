"""Asks every engine for its counters and its requests, and compares each request with its event.
`engine_runs` remembers the counters, `engine_reading` asks the engines, `request_check` compares and absorbs.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

import httpx
import redis
from sqlalchemy import Connection, Engine, select

from billing.audit.engine_runs import (
    EngineRun,
    RequestsAt,
    end_run,
    hold_off_polls,
    latest_run,
    note_later_run,
    read_runs,
    store_poll,
    store_requests,
)
from billing.audit.request_check import EngineRef, check_requests, read_events
from billing.fleet.engine_instances import AuditedInstance, Registry, read_instances
from billing.fleet.engine_reading import Counters, Reading
from billing.fleet.engine_request_counts import read_instance
from billing.moments import HOUR_MS
from billing.schema.ledger import in_days, usage_event
from billing.wire.certificates import checked_by
from billing.wire.tokens import NO_TOKENS, CounterPair

_READERS: Final = 16
# How many requests of one engine without an event are remembered: minutes of a busy engine.
_UNRECORDED_MAX: Final = 20_000
_ENDED_CHECKED_MS: Final = HOUR_MS


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What one request had produced beyond its event, and what has just been absorbed."""

    request_id: str
    instance: str
    epoch: str
    tokens: CounterPair


@dataclass(frozen=True, slots=True)
class Poll:
    """One pass over all instances: the registry, each engine's answer, its counts of requests that may have
    no event yet, and what was absorbed.
    """

    registry: Registry
    readings: Mapping[str, Reading]
    requests: Mapping[str, Mapping[str, CounterPair]]
    absorbed: tuple[Absorbed, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """How far one engine's requests have been read: the last page, and earlier requests that had no event
    yet.
    """

    boot: str
    sequence: int
    unrecorded: Mapping[str, CounterPair]


class CounterPoller:
    """Polls every instance, remembers its counters, and compares its requests with their events."""

    def __init__(
        self, engine: Engine, client: redis.Redis, *, timeout_ms: int, ca_file: Path | None = None
    ) -> None:
        self._engine = engine
        self._client = client
        self._http = httpx.Client(
            timeout=timeout_ms / 1000, trust_env=False, follow_redirects=False,
            verify=checked_by(ca_file=ca_file),
        )  # fmt: skip
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="engine-counters")
        self._seen: dict[tuple[str, str], _Seen] = {}

    def close(self) -> None:
        """Close the connections to the engines."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def poll_once(self) -> Poll:
        """Read all engines now and store what they report. Waits for a pass of another process."""
        with self._engine.begin() as connection:
            hold_off_polls(connection)
            began = time.monotonic()
            registry = read_instances(self._client)
            alive = [each for each in registry.instances if each.alive]
            answers = self._readers.map(self._read, alive)
            readings = {each.instance: answer for each, answer in zip(alive, answers, strict=True)}
            answered_ms = registry.now_ms + ceil((time.monotonic() - began) * 1000)
            store_poll(connection, registry.instances, readings)
            requests: dict[str, Mapping[str, CounterPair]] = {}
            absorbed: list[Absorbed] = []
            seen: dict[tuple[str, str], _Seen] = {}
            for each in alive:
                reading = readings[each.instance]
                if isinstance(reading, Counters) and reading.requests is not None:
                    key = each.instance, each.epoch
                    moments = registry.now_ms, answered_ms
                    requests[each.instance], seen[key] = self._take(
                        connection, each, reading, moments, absorbed
                    )
                elif (each.instance, each.epoch) in self._seen:
                    seen[each.instance, each.epoch] = self._seen[each.instance, each.epoch]
            absorbed += _check_ended_runs(connection, registry.now_ms)
        self._seen = seen
        return Poll(registry, readings, requests, tuple(absorbed))

    def _read(self, instance: AuditedInstance) -> Reading:
        """One reading, from the beginning if its process is another than at the last one."""
        seen = self._seen.get((instance.instance, instance.epoch))
        reading = read_instance(self._http, instance, after=0 if seen is None else seen.sequence)
        if isinstance(reading, Counters) and seen is not None and reading.started != seen.boot:
            return read_instance(self._http, instance)
        return reading

    def _take(
        self,
        connection: Connection,
        each: AuditedInstance,
        reading: Counters,
        moments: tuple[int, int],
        absorbed: list[Absorbed],
    ) -> tuple[dict[str, CounterPair], _Seen]:
        """Check the requests that have ended, and store the others beside the counters of the same moment,
        which lies between two pages.
        """
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
        absorbed += [
            Absorbed(name, each.instance, each.epoch, tokens) for name, tokens in checked.absorbed.items()
        ]
        unrecorded = {name: count for name, count in ended.items() if name not in checked.recorded}
        newest = dict(list(unrecorded.items())[-_UNRECORDED_MAX:])
        # Else requests that ended after the stored moment would look as if they came after this reading.
        asked_ms, answered_ms = moments
        just_ended = {
            name: ended[name] for name, (_, ended_ms) in checked.recorded.items() if ended_ms > asked_ms
        }
        run = latest_run(connection, each.instance, each.epoch)
        assert run is not None, "its counters were stored just now"
        store_requests(
            connection, run, RequestsAt(asked_ms, reading.tokens, {**just_ended, **newest, **running})
        )
        began_ms = {name: started_ms for name, (started_ms, _) in checked.recorded.items()}
        note_later_run(connection, run, answered_ms, {**ended, **running}, began_ms)
        return {**ended, **running}, _Seen(boot, reading.requests.sequence, newest)


def lost_tokens(
    connection: Connection, runs: Sequence[EngineRun], spoken_of: Collection[str] = ()
) -> dict[int, CounterPair]:
    """By run of one epoch: what requests are accounted for with beyond the last reading of an engine that
    died. The engine produced it, and no counter has it. `spoken_of`: requests that the run names that answers
    now.
    """
    died = [(run, run.requests) for run in runs if run.requests is not None and not run.exact]
    if not died:
        return {}
    known = {name for run in runs if run.requests is not None for name in run.requests.counts} | set(
        spoken_of
    )
    here = (usage_event.c.instance == runs[0].instance) & (usage_event.c.epoch == runs[0].epoch)
    columns = (
        usage_event.c[name]
        for name in ("request_id", "started_ms", "ended_ms", "produced_prompt", "produced_output")
    )
    since = min(requests.at_ms for _, requests in died)
    query = select(*columns).where(
        in_days(since, None), here, usage_event.c.kind == "request", usage_event.c.ended_ms > since
    )
    unspoken = [row for row in connection.execute(query) if row.request_id not in known]
    lost: dict[int, CounterPair] = {}
    for run, requests in died:
        beyond = _beyond(connection, run, requests)
        rest = []
        for row in unspoken:
            if requests.may_have_run(row.request_id, row.started_ms, row.ended_ms):
                beyond += CounterPair(row.produced_prompt, row.produced_output)
            else:
                rest.append(row)
        lost[run.run], unspoken = beyond, rest
    return lost


def _beyond(connection: Connection, run: EngineRun, requests: RequestsAt) -> CounterPair:
    """What the events of those requests contain beyond the run's last count of them."""
    found = NO_TOKENS
    for row in read_events(connection, list(requests.counts)):
        if (row["instance"], row["epoch"]) == (run.instance, run.epoch):
            counted = requests.counts[row["request_id"]]
            found += CounterPair(row["produced_prompt"], row["produced_output"]).at_least(counted) - counted
    return found


def _check_ended_runs(connection: Connection, now_ms: int) -> list[Absorbed]:
    """For engines that have ended: compare the requests that they last named with events that have come
    since. After an hour all have come, and the run is as exact as it will get.
    """
    absorbed: list[Absorbed] = []
    for run in read_runs(connection, state="closed", with_requests=True):
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
        absorbed += [
            Absorbed(name, run.instance, run.epoch, tokens) for name, tokens in checked.absorbed.items()
        ]
        if run.requests.at_ms < now_ms - _ENDED_CHECKED_MS:
            end_run(
                connection, run, run.last if run.exact else run.requests.counted + _lost_of(connection, run)
            )
    return absorbed


def _lost_of(connection: Connection, run: EngineRun) -> CounterPair:
    return lost_tokens(connection, read_runs(connection, epoch=(run.instance, run.epoch)))[run.run]


def _short_of(
    connection: Connection, engine: EngineRef, counts: Mapping[str, CounterPair]
) -> dict[str, CounterPair]:
    """Requests whose event has less than the engine had counted. After its last count an engine may have
    produced more, so more is correct.
    """
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
