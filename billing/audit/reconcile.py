"""For engines that do not count their requests: absorbs tokens that cut-off requests produced after their
last known figure.

No event can contain those tokens; the engine's counters do, once it is idle and everything metered has
arrived. They are absorbed, never billed, with the cut-off requests as evidence, and at most as much as those
requests could still have produced. Without such a request, or beyond that bound, the residual stays: it is
unexplained. An engine that counts its requests needs none of this: `request_check` compares each of them with
its event.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, RowMapping, func, insert, select

from billing.audit.balance import EpochBalance
from billing.ledger.absorbed_event import AbsorbedEvent, absorb
from billing.ledger.event_days import are_those, recorded
from billing.schema.catalogue import model as model_table
from billing.schema.ledger import NOT_FINAL, reconciled_request, usage_event
from billing.schema.locks import AdvisoryLock
from billing.wire.ending import Ending
from billing.wire.tokens import NO_TOKENS, CounterPair


@dataclass(frozen=True, slots=True)
class Evidence:
    """A request whose event lacks the engine's final count, and whose engine has not been found in balance
    since. `room`: what it can still have produced.
    """

    request_id: str
    instance: str
    epoch: str
    room: CounterPair
    ending: Ending


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The event that absorbed a residual."""

    request_id: str
    instance: str
    epoch: str
    tokens: CounterPair
    evidence: tuple[str, ...]


def read_evidence(connection: Connection) -> list[Evidence]:
    """Requests without a final count that are not reconciled yet, by id."""
    done = select(reconciled_request.c.request_id).where(
        reconciled_request.c.request_id == usage_event.c.request_id
    )
    query = (
        select(usage_event, model_table.c.context_tokens)
        .outerjoin(model_table, model_table.c.name == usage_event.c.model)
        .where(NOT_FINAL, ~done.exists())
        .order_by(usage_event.c.request_id)
    )
    return [
        Evidence(row["request_id"], row["instance"], row["epoch"], _room(row), Ending(row["ending"]))
        for row in connection.execute(query).mappings()
    ]


def _room(row: RowMapping) -> CounterPair:
    """Each sample can fill the model's context, prompt and output together. Without a known context there is
    no room.
    """
    whole = (row["context_tokens"] or 0) * row["samples"]
    return CounterPair(max(0, whole - row["produced_prompt"]), max(0, whole - row["produced_output"]))


def reconcile(
    connection: Connection, balance: EpochBalance, evidence: Sequence[Evidence]
) -> Reconciliation | None:
    """Absorb the residual of an idle epoch, or note that there is none. The caller has made sure that nothing
    is under way. Returns None if nothing was absorbed: a negative residual stays visible, and so do the
    requests that it may belong to.
    """
    residual = balance.residual
    if not evidence or residual.prompt < 0 or residual.generation < 0:
        return None
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.RECONCILIATION)))
    here = [
        each
        for each in read_evidence(connection)
        if (each.instance, each.epoch) == (balance.instance, balance.epoch)
    ]
    if [each.request_id for each in here] != [each.request_id for each in evidence]:
        return None  # Another process was faster, or another request has come to light: read again.
    room = sum((each.room for each in evidence), NO_TOKENS)
    tokens = CounterPair(min(residual.prompt, room.prompt), min(residual.generation, room.generation))
    if residual != NO_TOKENS and tokens == NO_TOKENS:
        return None
    ids = tuple(each.request_id for each in evidence)
    gateway_died = any(each.ending is Ending.GATEWAY_DIED for each in evidence)
    ending = Ending.GATEWAY_DIED if gateway_died else evidence[0].ending
    made = _absorb(connection, balance, tokens, ids, ending) if tokens != NO_TOKENS else None
    rows = [
        {"request_id": request_id, "reconciliation": made.request_id if made else None} for request_id in ids
    ]
    connection.execute(insert(reconciled_request), rows)
    return made


def _absorb(
    connection: Connection, balance: EpochBalance, tokens: CounterPair, ids: tuple[str, ...], ending: Ending
) -> Reconciliation:
    named = hashlib.sha256(orjson.dumps([balance.instance, balance.epoch, ids])).hexdigest()
    those = are_those(recorded(connection, ids[:1]))
    first = connection.execute(select(usage_event).where(those)).mappings().one()
    engine = balance.instance, balance.epoch
    event = AbsorbedEvent.beyond(
        first, request_id=f"rec_{named[:32]}", engine=engine, tokens=tokens, evidence=ids, ending=ending
    )
    absorb(connection, event)
    return Reconciliation(event.request_id, balance.instance, balance.epoch, tokens, ids)
