"""Compares each request's event with what its engine says that the request produced.

An event that lacks the engine's final count (its gateway died, the answer was cut off) is completed: what the
request produced beyond it is absorbed, with the request's id as evidence. Any other difference is a finding,
stored by request, and stays in the residual. It runs while requests come and go: an engine's figures for a
request that has ended there do not change.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from sqlalchemy import Connection, RowMapping, select
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import models
from billing.ledger.absorbed_event import AbsorbedEvent, absorb
from billing.ledger.event_days import are_those, recorded
from billing.refusals import NotFound
from billing.schema.ledger import (
    NOT_FINAL,
    engine_counter,
    reconciled_request,
    request_difference,
    usage_event,
)
from billing.wire.ending import Ending, OtherReason
from billing.wire.tokens import CounterPair

# Measurements send requests with ids of this form: nobody pays for their tokens.
CALIBRATION_ID: Final = "calibration-"
_IDS_A_QUERY: Final = 5_000
_COLUMNS: Final = (
    "request_id", "model", "pool", "cell", "instance", "epoch", "class", "weights", "started_ms", "ended_ms",
    "ending", "anomaly", "gateway", "produced_prompt", "produced_output",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineRef:
    """One start of one instance, and what it serves."""

    instance: str
    epoch: str
    model: str
    pool: str
    cell: str


@dataclass(frozen=True, slots=True)
class Checked:
    """`recorded`: start and end of the requests that have an event. `absorbed`: what has just been
    absorbed.
    """

    recorded: Mapping[str, tuple[int, int]]
    absorbed: Mapping[str, CounterPair]


def check_requests(connection: Connection, engine: EngineRef, counts: Mapping[str, CounterPair]) -> Checked:
    """Compare requests that have ended in the engine with their events. Requests without an event yet are
    checked later.
    """
    if not counts:
        return Checked({}, {})
    places = places_of(connection, engine.instance, engine.epoch)
    recorded: dict[str, tuple[int, int]] = {}
    absorbed: dict[str, CounterPair] = {}
    settled: list[str] = []
    for row in read_events(connection, list(counts)):
        request_id = row["request_id"]
        here = (row["instance"], row["epoch"]) in places
        accounted = CounterPair(row["produced_prompt"], row["produced_output"]) if here else CounterPair()
        recorded[request_id] = row["started_ms"], row["ended_ms"]
        if here and _may_miss_tokens(row, here=here):
            settled.append(request_id)
        missing = counts[request_id] - accounted
        if missing == CounterPair():
            continue
        completed = read_completion(connection, places, request_id)
        if completed is not None:
            accounted += completed
            missing -= completed
        if missing == CounterPair():
            continue
        if (
            completed is None
            and min(missing.prompt, missing.generation) >= 0
            and _may_miss_tokens(row, here=here)
        ):
            _complete(connection, engine, row, missing)
            absorbed[request_id] = missing
        else:
            _note_difference(connection, engine, request_id, counts[request_id], accounted)
    if settled:
        done = insert(reconciled_request).on_conflict_do_nothing()
        connection.execute(
            done, [{"request_id": request_id, "reconciliation": None} for request_id in settled]
        )
    measured = {
        request_id: count
        for request_id, count in counts.items()
        if request_id.startswith(CALIBRATION_ID) and request_id not in recorded
    }
    for request_id, count in measured.items():
        if read_completion(connection, places, request_id) is not None:
            recorded[request_id] = 0, 0
        elif _absorb_measurement(connection, engine, request_id, count):
            recorded[request_id] = 0, 0
            absorbed[request_id] = count
    return Checked(recorded, absorbed)


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of the requests that an engine names: those without an event, and what it counted beyond the
    events that do not claim to be complete.
    """

    recorded: frozenset[str]
    without: Mapping[str, CounterPair]
    to_complete: CounterPair


def standing(
    connection: Connection, instance: str, epoch: str, counts: Mapping[str, CounterPair]
) -> Standing:
    """The state of these requests in SQL; it changes nothing."""
    events = {row["request_id"]: row for row in read_events(connection, list(counts))}
    places = places_of(connection, instance, epoch) if counts else frozenset()
    to_complete = CounterPair()
    for request_id, row in events.items():
        here = (row["instance"], row["epoch"]) in places
        accounted = CounterPair(row["produced_prompt"], row["produced_output"]) if here else CounterPair()
        missing = counts[request_id] - accounted
        if missing != CounterPair() and _may_miss_tokens(row, here=here):
            missing -= read_completion(connection, places, request_id) or CounterPair()
            to_complete += missing.at_least(CounterPair())
    without = {name: count for name, count in counts.items() if name not in events}
    return Standing(frozenset(events), without, to_complete)


def read_events(connection: Connection, ids: Sequence[str]) -> list[RowMapping]:
    """The events of these requests, on whatever instance, without the completions that this module wrote."""
    query = select(*(usage_event.c[name] for name in _COLUMNS), NOT_FINAL.label("not_final")).where(
        usage_event.c.kind == "request"
    )
    found: list[RowMapping] = []
    for start in range(0, len(ids), _IDS_A_QUERY):
        those = recorded(connection, ids[start : start + _IDS_A_QUERY])
        if those:
            found += connection.execute(query.where(are_those(those))).mappings()
    return found


def completion_id(instance: str, epoch: str, request_id: str) -> str:
    """The id of the event that completes a request's event on one engine."""
    named = hashlib.sha256(orjson.dumps([instance, epoch, request_id])).hexdigest()
    return f"rec_{named[:32]}"


def places_of(connection: Connection, instance: str, epoch: str) -> frozenset[tuple[str, str]]:
    """The instances and epochs of one engine process. A process that was removed and added again has not
    restarted, and still names requests from before.
    """
    ours = select(engine_counter.c.started).where(
        engine_counter.c.instance == instance, engine_counter.c.epoch == epoch
    )
    query = select(engine_counter.c.instance, engine_counter.c.epoch).where(
        engine_counter.c.started.in_(ours)
    )
    return frozenset({(instance, epoch), *((row.instance, row.epoch) for row in connection.execute(query))})


def read_completion(
    connection: Connection, places: Collection[tuple[str, str]], request_id: str
) -> CounterPair | None:
    """What was absorbed on this engine to complete a request's event."""
    ids = [completion_id(instance, epoch, request_id) for instance, epoch in places]
    query = select(usage_event.c.produced_prompt, usage_event.c.produced_output)
    rows = connection.execute(query.where(are_those(recorded(connection, ids)))).all()
    return sum((CounterPair(*row) for row in rows), CounterPair()) if rows else None


def _may_miss_tokens(row: RowMapping, *, here: bool) -> bool:
    """Whether the event does not claim to be complete: it lacks the engine's final count, or is about another
    attempt elsewhere.
    """
    return not here or row["not_final"] or row["anomaly"] is not None


def _complete(connection: Connection, engine: EngineRef, row: RowMapping, missing: CounterPair) -> None:
    request_id = row["request_id"]
    event = AbsorbedEvent.beyond(
        row,
        request_id=completion_id(engine.instance, engine.epoch, request_id),
        engine=(engine.instance, engine.epoch),
        tokens=missing,
        evidence=(request_id,),
        ending=Ending(row["ending"]),
    )
    absorb(connection, event)


def _absorb_measurement(
    connection: Connection, engine: EngineRef, request_id: str, count: CounterPair
) -> bool:
    """Absorb the tokens of a measurement. Returns False if the model is unknown."""
    try:
        model = models.find(connection, engine.model)
    except NotFound:
        return False
    absorb(
        connection,
        AbsorbedEvent(
            request_id=completion_id(engine.instance, engine.epoch, request_id),
            model=engine.model,
            pool=engine.pool,
            cell=engine.cell,
            instance=engine.instance,
            epoch=engine.epoch,
            tokens=count,
            reason=OtherReason.CALIBRATION,
            ending=Ending.COMPLETE,
            weights=model.versioned_weights(),
            started_ms=0,
            route=OtherReason.CALIBRATION.value,
            evidence=(request_id,),
        ),
    )
    return True


def _note_difference(
    connection: Connection, engine: EngineRef, request_id: str, counted: CounterPair, recorded: CounterPair
) -> None:
    """Store a difference: the engine forgets its requests, and an unexplained difference must not be
    forgotten with them.
    """
    values = {
        "counted_prompt": counted.prompt,
        "counted_generation": counted.generation,
        "recorded_prompt": recorded.prompt,
        "recorded_generation": recorded.generation,
    }
    statement = insert(request_difference).values(
        instance=engine.instance, epoch=engine.epoch, request_id=request_id, **values
    )
    keys = ["instance", "epoch", "request_id"]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values))
