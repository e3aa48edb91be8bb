"""Records usage: events, and one balanced money transaction for each, exactly once by request id. It owns the
SQL of the ledger's facts.

It knows nothing of Redis. All functions work inside the caller's SQL transaction: an event, its transaction,
its postings and the running totals are written together or not at all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec
import orjson
from msgspec.structs import replace
from sqlalchemy import Connection, and_, exists, or_, select, text
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import Price, PriceBook, Scope, read_price_book
from billing.ledger import event_days
from billing.ledger.accounts import Account, Posting, check_balanced
from billing.ledger.bulk_insert import insert_rows
from billing.ledger.chain import ChainedEntry, PriceDigests, add_links, entry_of, lock_heads
from billing.ledger.hour_sums import add_to_hours
from billing.ledger.line_bill import bill_once
from billing.ledger.running_totals import add_totals, note_use
from billing.ledger.unsaid_provider import with_providers
from billing.schema.ledger import (
    ledger_posting,
    ledger_transaction,
    usage_conflict,
    usage_event,
    usage_rejected,
)
from billing.wire.tokens import Tokens, UsageEventError
from billing.wire.usage_event import COLUMNS, EVENT_VERSION, UsageEvent

# A rejected or conflicting text is kept as evidence; an event is about 1 kB.
RAW_BYTES_MAX: Final = 65_536


# Each request with the transaction of it that counts: an unpriced one may have been corrected since.
_correction = ledger_transaction.alias("correction")
PRICED_EVENTS: Final = usage_event.join(
    ledger_transaction,
    and_(
        ledger_transaction.c.request_id == usage_event.c.request_id,
        ledger_transaction.c.day == usage_event.c.day,
        or_(
            ledger_transaction.c.pricing != "unpriced",
            ~exists(select(1).where(_correction.c.corrects == ledger_transaction.c.transaction_id)),
        ),
    ),
)
# And with what its tenant owes for it, where that is not nothing.
OWED_EVENTS: Final = PRICED_EVENTS.outerjoin(
    ledger_posting,
    and_(
        ledger_posting.c.transaction_id == ledger_transaction.c.transaction_id,
        ledger_posting.c.account == "receivable",
    ),
)


class Pricing(StrEnum):
    """How a request's transaction got its amount."""

    PRICED = "priced"
    UNPRICED = "unpriced"
    QUARANTINED = "quarantined"
    NOTHING_BILLED = "nothing_billed"


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event and its original text. Texts have one digest if they differ only in the order of members, or
    in whether the reservation was lost: an event that is sent again after Redis lost data may find none.
    """

    event: UsageEvent
    raw: bytes
    digest: str

    @classmethod
    def read(cls, raw: bytes) -> "ReceivedEvent":
        """Parse; raises `UsageEventError`."""
        event = UsageEvent.from_json(raw)
        alike = replace(event, orphan=False) if event.orphan else event
        try:
            canonical = orjson.dumps(orjson.loads(alike.to_json()), option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError as exc:
            raise UsageEventError(f"an event that cannot be written again: {exc}") from exc
        return cls(event, raw, hashlib.sha256(canonical).hexdigest())


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event that is in the ledger since this call."""

    event: UsageEvent
    pricing: Pricing
    price: Price | None
    amount: Money


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one batch added. `duplicates` were known already; `conflicts` were too, with different content."""

    events: tuple[RecordedEvent, ...]
    duplicates: int
    conflicts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """A stream entry that is not an event."""

    cell: str
    entry_id: str
    reason: str
    raw: bytes


def price_event(event: UsageEvent, book: PriceBook) -> RecordedEvent:
    """Price a request by the price that held when it started. There is no amount if its usage is in doubt, or
    if no price covers it.
    """
    if event.anomaly is not None:
        return RecordedEvent(event, Pricing.QUARANTINED, None, ZERO)
    if event.billed == Tokens(0, 0, 0):
        return RecordedEvent(event, Pricing.NOTHING_BILLED, None, ZERO)
    price = book.at(event.model, event.started_ms, price_scopes(event, book))
    if price is None:
        return RecordedEvent(event, Pricing.UNPRICED, None, ZERO)
    return RecordedEvent(event, Pricing.PRICED, price, price.amount(event.billed))


class Chargeable(Protocol):
    """What a request's price depends on, beside its model and when it started."""

    @property
    def tenant(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def class_(self) -> str: ...
    @property
    def contract(self) -> str | None: ...
    @property
    def line(self) -> str | None: ...
    @property
    def decision(self) -> Mapping[str, Any] | None: ...
    @property
    def started_ms(self) -> int: ...


@lru_cache(maxsize=1024)
def _scope(contract_id: str | None, class_: str | None) -> Scope:
    return Scope(contract_id=contract_id, class_=class_)


def price_scopes(event: Chargeable, book: PriceBook) -> Iterator[Scope]:
    """Where to look for the price of a request, the nearest first: its contract's own before everybody's; of
    each, that of batches for a line of one, that of its class, that of all. A request above its tenant's
    contract has none, but pays by it.
    """
    contracts = [event.contract] if event.contract else []
    if event.contract is None and (event.decision or {}).get("why") == "spilled":
        contracts = book.contracts_held(event.tenant, event.pool, event.started_ms)
    classes = (*(("batch",) if event.line else ()), str(event.class_), None)
    for holder in (*contracts, None):
        for class_ in classes:
            yield _scope(holder, class_)


def postings(recorded: RecordedEvent) -> tuple[Posting, ...]:
    """The tenant owes, the model has earned. An amount of zero needs no postings."""
    if recorded.amount == ZERO:
        return ()
    lines = (
        Posting(Account.RECEIVABLE.value, recorded.event.tenant, recorded.amount),
        Posting(Account.REVENUE.value, recorded.event.model, -recorded.amount),
    )
    check_balanced(lines)
    return lines


class RecordedBefore(Exception):
    """Some of these requests have an entry already, though no event in the partitions of these days."""


def record_events(connection: Connection, received: Sequence[ReceivedEvent]) -> Recorded:
    """Record the new events of a batch. The first event of a request counts, in whatever order and however
    often they come: the ledger has one entry that begins each request, also when its event is gone. Raises
    RecordedBefore if another process has just recorded one of them; then it is to be called again.
    """
    if not received:
        return Recorded((), 0, ())
    try:
        with connection.begin_nested():
            return _record(connection, received, frozenset())
    except RecordedBefore:
        known = event_days.recorded(connection, {item.event.request_id for item in received})
        return _record(connection, received, known.keys())


def _record(connection: Connection, received: Sequence[ReceivedEvent], known: Set[str]) -> Recorded:
    firsts: dict[str, ReceivedEvent] = {}
    for item in received:
        firsts.setdefault(item.event.request_id, item)
    # The same order everywhere, so that two consumers with the same entries cannot deadlock.
    events = {each: firsts[each].event for each in sorted(firsts.keys() - known)}
    events |= bill_once(connection, events)
    events |= with_providers(connection, events)
    inserted: set[str] = set()
    rows: dict[str, dict[str, Any]] = {}
    if events:
        days = event_days.days_of(connection, (event.ended_ms for event in events.values()))
        rows = {
            each: event_row(event, firsts[each].digest, days[event.ended_ms])
            for each, event in events.items()
        }
        added = insert_rows(
            connection, usage_event, list(rows.values()), ignore_known=True, returning=["request_id"]
        )
        inserted = set(added.scalars())
    again = [
        item
        for item in received
        if item.event.request_id not in inserted or firsts[item.event.request_id] is not item
    ]
    conflicts = _record_conflicts(connection, again, {each: rows[each]["day"] for each in inserted})
    new = [events[request_id] for request_id in sorted(inserted)]
    book = read_price_book(connection, (event.model for event in new))
    priced = tuple(price_event(event, book) for event in new)
    _write_transactions(connection, priced, rows)
    add_totals(connection, new)
    note_use(connection, new)
    return Recorded(priced, len(again) - len(conflicts), tuple(item.event.request_id for item in conflicts))


def _record_conflicts(
    connection: Connection, again: Sequence[ReceivedEvent], inserted: Mapping[str, int]
) -> list[ReceivedEvent]:
    """Those that differ from what is recorded, or just inserted (with its day). Of an event that is gone
    nobody can tell.
    """
    if not again:
        return []
    ids = {item.event.request_id for item in again}
    days = event_days.recorded(connection, ids - inserted.keys())
    days |= {each: inserted[each] for each in ids & inserted.keys()}
    stored = select(usage_event.c.request_id, usage_event.c.digest).where(event_days.are_those(days))
    digests: dict[str, str] = {row.request_id: row.digest for row in connection.execute(stored)}
    conflicts = [item for item in again if digests.get(item.event.request_id, item.digest) != item.digest]
    if conflicts:
        rows = [
            {"request_id": item.event.request_id, "digest": item.digest, "raw": item.raw[:RAW_BYTES_MAX]}
            for item in sorted(conflicts, key=lambda item: (item.event.request_id, item.digest))
        ]
        connection.execute(insert(usage_conflict).on_conflict_do_nothing(), rows)
    return conflicts


# Entries of the ledger with their postings. What is late is said by the same statement.
_WRITE: Final = text("""
with given as materialized (
  select * from json_to_recordset(cast(:rows as json)) as given (request_id text, day int, tenant text,
    model text, ended_ms bigint, pricing text, price_id bigint, amount numeric)
), made as (
  insert into ledger_transaction (request_id, day, pricing, price_id, chained, counted)
  select request_id, day, pricing, price_id, true, true from given
  on conflict do nothing
  returning transaction_id, request_id, recorded_ms
), posted as (
  insert into ledger_posting (transaction_id, line, account, holder, amount_picousd)
  select transaction_id, 0, 'receivable', tenant, amount from made join given using (request_id)
  where amount <> 0
  union all
  select transaction_id, 1, 'revenue', model, -amount from made join given using (request_id)
  where amount <> 0
), late as (
  insert into late_transaction (transaction_id, tenant_id)
  select transaction_id, tenant from made join given using (request_id)
  join invoiced on tenant_id = tenant
  where pricing = 'priced' and ended_ms < until_ms
)
select * from made
""")


def _write_transactions(
    connection: Connection, priced: Sequence[RecordedEvent], events: Mapping[str, Mapping[str, Any]]
) -> None:
    """`events`: the columns of each, by request id."""
    if not priced:
        return
    heads = lock_heads(connection, [item.event.tenant for item in priced])
    rows = [
        {
            "request_id": item.event.request_id,
            "day": events[item.event.request_id]["day"],
            "tenant": item.event.tenant,
            "model": item.event.model,
            "ended_ms": item.event.ended_ms,
            "pricing": item.pricing.value,
            "price_id": item.price.price_id if item.price else None,
            "amount": str(item.amount.picousd),
        }
        for item in priced
    ]
    written = connection.execute(_WRITE, {"rows": orjson.dumps(rows).decode()})
    made = {row.request_id: (row.transaction_id, row.recorded_ms) for row in written}
    if len(made) < len(priced):
        raise RecordedBefore
    links: list[ChainedEntry] = []
    digests = PriceDigests()
    for item in priced:
        event = item.event
        transaction_id, recorded_ms = made[event.request_id]
        links.append(
            entry_of(
                events[event.request_id],
                [(line.account, line.holder, line.amount.picousd) for line in postings(item)],
                digests.of(item.price),
                transaction_id=transaction_id,
                request_id=event.request_id,
                pricing=item.pricing.value,
                corrects=False,
                recorded_ms=recorded_ms,
            )
        )
    add_to_hours(
        connection,
        (
            (item.event, item.pricing.value, item.price.price_id if item.price else None, item.amount.picousd)
            for item in priced
        ),
    )
    add_links(connection, heads, links)


def record_rejected(connection: Connection, rejected: Sequence[RejectedEntry]) -> int:
    """Store what could not be read, once per entry. Returns how many are new."""
    if not rejected:
        return 0
    rows = [
        {
            "cell": item.cell,
            "entry_id": item.entry_id,
            "digest": hashlib.sha256(item.raw).hexdigest(),
            "reason": item.reason.replace("\x00", "�")[:500],
            "raw": item.raw[:RAW_BYTES_MAX],
        }
        for item in rejected
    ]
    statement = insert(usage_rejected).on_conflict_do_nothing().returning(usage_rejected.c.rejected_id)
    return len(connection.execute(statement, rows).all())


# Fields that are columns as they are.
_PLAIN: Final = [
    name for name in COLUMNS if COLUMNS[name] == (name,) and name not in {"class", "weights", "ignored"}
]


def event_row(event: UsageEvent, digest: str, day: int) -> dict[str, Any]:
    """The columns of `usage_event`: the event's fields, of which those with tokens have a column for each
    kind.
    """
    produced, billed, absorbed = event.produced, event.billed, event.absorbed
    return {
        **{name: getattr(event, name) for name in _PLAIN},
        "class": event.class_,
        "weights": msgspec.to_builtins(event.weights),
        "ignored": event.ignored or None,
        "produced_prompt": produced.prompt, "produced_cached": produced.cached,
        "produced_written": produced.written, "produced_output": produced.output,
        "delivered_output": event.delivered.output,
        "billed_prompt": billed.prompt, "billed_cached": billed.cached,
        "billed_written": billed.written, "billed_output": billed.output,
        "absorbed_prompt": absorbed.prompt, "absorbed_output": absorbed.output,
        "absorbed_reasons": {
            str(reason): {"prompt": each.prompt, "output": each.output}
            for reason, each in absorbed.reasons.items()
        },
        "kind": "request", "version": EVENT_VERSION, "digest": digest, "day": day,
    }  # fmt: skip
