"""Sinks in SQL: where recorded requests are delivered, how far, and what was not sent. It sends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from sqlalchemy import (
    Connection,
    Row,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from billing.catalogue.names import new_id
from billing.exports.recorded import Form, RecordedRequest
from billing.ledger.chain import HOUSE
from billing.ledger.usage_export import position_before
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Invalid, NotFound
from billing.schema.chain import usage_chain, usage_chain_head
from billing.schema.exports import sink as table
from billing.schema.exports import sink_position, sink_skipped
from billing.schema.retention import dropped_event
from billing.wire.webhooks import new_secret

_PREFIX: Final = "snk_"
Why = Literal["too_old", "unsure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """One sink. `tenant_id` None: of all tenants."""

    sink_id: str
    tenant_id: str | None
    url: str
    form: Form
    customer: str | None
    meter: str | None
    bearer: str | None = field(repr=False)
    secret: str = field(repr=False)
    paused: bool
    created_ms: int


@dataclass(frozen=True, slots=True)
class Place:
    """How far a sink is in a chain, whose last link is at `head`; `attempts` that failed since. `unsure`:
    since when, and up to where, its receiver may have more.
    """

    chain: str
    position: int
    head: int
    attempts: int
    unsure: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Lag:
    """Links of chains that wait, since when the oldest does, and why the last attempt failed; and how many
    requests were skipped.
    """

    undelivered: int = 0
    oldest_ms: int | None = None
    failure: str | None = None
    next_ms: int | None = None
    skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A request that was too old for the receiver, or that it may have had already."""

    chain: str
    position: int
    request_id: str
    ended_ms: int
    skipped_ms: int
    why: Why


_OLDEST_FIRST: Final[Order[Sink]] = Order(
    "sinks", lambda sink: (sink.created_ms, sink.sink_id), (int, str), (table.c.created_ms, table.c.sink_id)
)
_IN_ORDER: Final[Order[Skipped]] = Order(
    "skipped",
    lambda row: (row.skipped_ms, row.chain, row.position),
    (int, str, int),
    (sink_skipped.c.skipped_ms, sink_skipped.c.chain, sink_skipped.c.position),
)


def create(
    connection: Connection,
    url: str,
    form: Form,
    *,
    tenant_id: str | None = None,
    customer: str | None = None,
    meter: str | None = None,
    bearer: str | None = None,
    from_ms: int | None = None,
) -> Sink:
    """A new sink of what is recorded from then on; None: from now on. Raises Invalid for a customer of no
    tenant.
    """
    if tenant_id is None and (customer is not None or form is Form.STRIPE):
        raise Invalid("A sink of Stripe, or with a customer, is of one tenant: name it.", param="tenant")
    if form is Form.STRIPE and customer is None:
        raise Invalid("Stripe knows the tenant by its customer's id (cus_…).", param="customer")
    if from_ms is not None:
        same = usage_chain.c.transaction_id == dropped_event.c.transaction_id
        gone = exists().where(same, usage_chain.c.chained_ms >= from_ms)
        gone = gone if tenant_id is None else gone.where(usage_chain.c.chain == tenant_id)
        if connection.execute(select(gone)).scalar_one():
            raise Invalid("Usage events that were recorded then were dropped by retention.", param="from")
    row = connection.execute(
        insert(table)
        .values(
            sink_id=new_id(_PREFIX), tenant_id=tenant_id, url=url, format=form.value, customer=customer,
            meter=meter, bearer=bearer,
            secret=new_secret(),
        )
        .returning(table)
    ).one()  # fmt: skip
    heads = select(usage_chain_head.c.chain, usage_chain_head.c.position).where(
        usage_chain_head.c.chain != HOUSE,
        true() if tenant_id is None else usage_chain_head.c.chain == tenant_id,
    )
    places = [
        {
            "sink_id": row.sink_id,
            "chain": head.chain,
            "position": head.position
            if from_ms is None
            else position_before(connection, head.chain, from_ms),
        }
        for head in connection.execute(heads).all()
    ]
    if places:
        connection.execute(insert(sink_position), places)
    return _sink(row)


def find(connection: Connection, sink_id: str) -> Sink:
    """Raises NotFound."""
    row = connection.execute(select(table).where(table.c.sink_id == sink_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no sink {sink_id!r}.", param="sink")
    return _sink(row)


def list_page(connection: Connection, asked: PageRequest, tenant_id: str | None = None) -> Page[Sink]:
    """All sinks, or those of one tenant alone."""
    query = select(table) if tenant_id is None else select(table).where(table.c.tenant_id == tenant_id)
    return read_page(connection, query, _OLDEST_FIRST, _sink, asked)


def pause(connection: Connection, sink_id: str, paused: bool) -> Sink:
    """Stop or resume it; it resumes where it was, at once. Raises NotFound."""
    find(connection, sink_id)
    if not paused:
        connection.execute(
            update(sink_position).where(sink_position.c.sink_id == sink_id).values(next_ms=None)
        )
    changed = update(table).where(table.c.sink_id == sink_id).values(paused=paused).returning(table)
    return _sink(connection.execute(changed).one())


def remove(connection: Connection, sink_id: str) -> Sink:
    """Remove it, with the report of what was not sent. Raises NotFound."""
    found = find(connection, sink_id)
    connection.execute(delete(table).where(table.c.sink_id == sink_id))
    return found


def skipped(connection: Connection, sink_id: str, asked: PageRequest) -> Page[Skipped]:
    """What was not sent, the first first. Raises NotFound."""
    find(connection, sink_id)
    query = select(sink_skipped).where(sink_skipped.c.sink_id == sink_id)
    return read_page(connection, query, _IN_ORDER, _skipped, asked)


_HERE: Final = sink_position.c
_HEAD: Final = usage_chain_head.c
_DONE: Final = func.coalesce(_HERE.position, literal(0))
# Each sink with each chain that it has not delivered to the end.
_WAITING: Final = (
    table.join(
        usage_chain_head,
        (_HEAD.chain != HOUSE) & or_(table.c.tenant_id.is_(None), table.c.tenant_id == _HEAD.chain),
    )
    .outerjoin(sink_position, (_HERE.sink_id == table.c.sink_id) & (_HERE.chain == _HEAD.chain))
)  # fmt: skip


def due(connection: Connection, now_ms: int) -> list[tuple[Sink, Sequence[Place]]]:
    """The sinks that have something to send now, each with its chains, the one that waited longest first."""
    query = (
        select(
            table,
            _HEAD.chain.label("of_chain"),
            _HEAD.position.label("head"),
            _DONE.label("done"),
            func.coalesce(_HERE.attempts, literal(0)).label("tries"),
            _HERE.unsure_ms,
            _HERE.unsure_upto,
        )
        .select_from(_WAITING)
        .where(~table.c.paused, _HEAD.position > _DONE, or_(_HERE.next_ms.is_(None), _HERE.next_ms <= now_ms))
        .order_by(table.c.sink_id, _HERE.tried_ms.nulls_first(), _HEAD.chain)
    )
    found: dict[str, tuple[Sink, list[Place]]] = {}
    for row in connection.execute(query):
        unsure = None if row.unsure_ms is None else (row.unsure_ms, row.unsure_upto)
        place = Place(row.of_chain, row.done, row.head, row.tries, unsure)
        found.setdefault(row.sink_id, (_sink(row), []))[1].append(place)
    return list(found.values())


def lags(connection: Connection) -> dict[str, Lag]:
    """Of each sink, also of one that is paused."""
    first = (
        select(usage_chain.c.chained_ms)
        .where(usage_chain.c.chain == _HEAD.chain, usage_chain.c.position > _DONE)
        .order_by(usage_chain.c.position)
        .limit(1)
        .scalar_subquery()
    )
    waiting = (
        select(
            table.c.sink_id,
            func.sum(_HEAD.position - _DONE).label("undelivered"),
            func.min(first).label("oldest_ms"),
            func.max(_HERE.failure).label("failure"),
            func.min(_HERE.next_ms).label("next_ms"),
        )
        .select_from(_WAITING)
        .where(_HEAD.position > _DONE)
        .group_by(table.c.sink_id)
    )
    lagging = {
        row.sink_id: Lag(int(row.undelivered), row.oldest_ms, row.failure, row.next_ms)
        for row in connection.execute(waiting)
    }
    count = select(sink_skipped.c.sink_id, func.count()).group_by(sink_skipped.c.sink_id)
    skips = {row[0]: row[1] for row in connection.execute(count)}
    return {
        sink_id: replace(lagging.get(sink_id, Lag()), skipped=skips.get(sink_id, 0))
        for sink_id in connection.execute(select(table.c.sink_id)).scalars()
    }


def sending(connection: Connection, sink: Sink, place: Place, upto: int, now_ms: int) -> None:
    """From now on the receiver may have what is up to there, until it is known whether it does."""
    since_ms, before = place.unsure or (now_ms, upto)
    new = {"unsure_ms": since_ms, "unsure_upto": max(before, upto)}
    _upsert(connection, sink, place, {"position": place.position, **new}, new)


def advance(
    connection: Connection,
    sink: Sink,
    place: Place,
    upto: int,
    skips: Sequence[tuple[RecordedRequest, Why]],
    now_ms: int,
) -> bool:
    """What is up to there is taken, or skipped and noted so. Returns False if somebody else has done that, or
    the sink is gone.
    """
    if (
        connection.execute(
            select(table.c.sink_id).where(table.c.sink_id == sink.sink_id).with_for_update(read=True)
        ).one_or_none()
        is None
    ):
        return False
    new = {
        "position": upto, "attempts": 0, "tried_ms": now_ms, "next_ms": None, "failure": None,
        "unsure_ms": None, "unsure_upto": None,
    }  # fmt: skip
    moved = connection.execute(
        upsert(sink_position)
        .values(sink_id=sink.sink_id, chain=place.chain, **new)
        .on_conflict_do_update(
            index_elements=["sink_id", "chain"], set_=new, where=sink_position.c.position == place.position
        )
        .returning(sink_position.c.position)
    ).one_or_none()
    if moved is None:
        return False
    if skips:
        rows = [
            {
                "sink_id": sink.sink_id, "chain": place.chain, "position": each.position,
                "request_id": each.request_id, "ended_ms": each.ended_ms, "skipped_ms": now_ms, "why": why,
            }
            for each, why in skips
        ]  # fmt: skip
        connection.execute(insert(sink_skipped), rows)
    return True


def failed(
    connection: Connection, sink: Sink, place: Place, why: str, next_ms: int, now_ms: int, *, unsure: bool
) -> None:
    """It was not taken, or (`unsure`) may have been; try again then."""
    new: dict[str, Any] = {
        "attempts": place.attempts + 1,
        "tried_ms": now_ms,
        "next_ms": next_ms,
        "failure": why,
    }
    if not unsure:
        # Of this attempt it has nothing; of those before it may have.
        since_ms, upto = place.unsure or (None, None)
        new |= {"unsure_ms": since_ms, "unsure_upto": upto}
    if connection.execute(select(table.c.sink_id).where(table.c.sink_id == sink.sink_id)).one_or_none():
        _upsert(connection, sink, place, {"position": place.position, **new}, new)


def _upsert(
    connection: Connection, sink: Sink, place: Place, first: dict[str, Any], new: dict[str, Any]
) -> None:
    """Of a place that is still where it was."""
    connection.execute(
        upsert(sink_position)
        .values(sink_id=sink.sink_id, chain=place.chain, **first)
        .on_conflict_do_update(
            index_elements=["sink_id", "chain"], set_=new, where=sink_position.c.position == place.position
        )
    )


def _sink(row: Row[Any]) -> Sink:
    return Sink(
        sink_id=row.sink_id, tenant_id=row.tenant_id, url=row.url, form=Form(row.format),
        customer=row.customer, meter=row.meter, bearer=row.bearer, secret=row.secret, paused=row.paused,
        created_ms=row.created_ms,
    )  # fmt: skip


def _skipped(row: Row[Any]) -> Skipped:
    return Skipped(
        chain=row.chain, position=row.position, request_id=row.request_id, ended_ms=row.ended_ms,
        skipped_ms=row.skipped_ms, why=row.why,
    )  # fmt: skip
