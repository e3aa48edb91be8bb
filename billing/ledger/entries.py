"""Records usage: events, and one balanced money transaction for each, exactly once by request id. It owns the
SQL of the ledger's facts.

It knows nothing of Redis. All functions work inside the caller's SQL transaction: an event, its transaction,
its postings and the running totals are written together or not at all.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec
import orjson
from msgspec.structs import asdict, replace
from sqlalchemy import Connection, and_, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import Price, PriceBook, Scope, read_price_book
from billing.ledger.accounts import Account, Posting, check_balanced, posting_row
from billing.ledger.bulk_insert import insert_rows
from billing.ledger.chain import ChainedEntry, PriceDigests, add_links, entry_of, lock_heads
from billing.ledger.line_bill import bill_once
from billing.ledger.unsaid_provider import with_providers
from billing.schema.catalogue import api_key_use
from billing.schema.ledger import (
    TOTAL_COLUMNS,
    WRITTEN_COLUMNS,
    ledger_posting,
    ledger_transaction,
    usage_conflict,
    usage_event,
    usage_rejected,
    usage_total,
)
from billing.wire.tokens import Tokens, UsageEventError
from billing.wire.usage_event import EVENT_VERSION, UsageEvent

# A rejected or conflicting text is kept as evidence; an event is about 1 kB.
RAW_BYTES_MAX: Final = 65_536


# Each request with the transaction of it that counts: an unpriced one may have been corrected since.
_correction = ledger_transaction.alias("correction")
PRICED_EVENTS: Final = usage_event.join(
    ledger_transaction,
    and_(
        ledger_transaction.c.request_id == usage_event.c.request_id,
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
            yield Scope(contract_id=holder, class_=class_)


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


def record_events(connection: Connection, received: Sequence[ReceivedEvent]) -> Recorded:
    """Record the new events of a batch. The first event of a request counts, in whatever order and however
    often they come.
    """
    if not received:
        return Recorded((), 0, ())
    firsts: dict[str, ReceivedEvent] = {}
    for item in received:
        firsts.setdefault(item.event.request_id, item)
    events = {request_id: item.event for request_id, item in firsts.items()}
    events |= bill_once(connection, events)
    events |= with_providers(connection, events)
    # The same order everywhere, so that two consumers with the same entries cannot deadlock.
    rows = [event_row(events[request_id], firsts[request_id].digest) for request_id in sorted(firsts)]
    inserted = set(
        insert_rows(connection, usage_event, rows, ignore_known=True, returning=["request_id"]).scalars()
    )
    again = [
        item
        for item in received
        if item.event.request_id not in inserted or firsts[item.event.request_id] is not item
    ]
    conflicts = _record_conflicts(connection, again)
    new = [events[request_id] for request_id in sorted(inserted)]
    book = read_price_book(connection, (event.model for event in new))
    priced = tuple(price_event(event, book) for event in new)
    _write_transactions(connection, priced, {row["request_id"]: row for row in rows})
    add_totals(connection, new)
    _note_use(connection, new)
    return Recorded(priced, len(again) - len(conflicts), tuple(item.event.request_id for item in conflicts))


def _record_conflicts(connection: Connection, again: Sequence[ReceivedEvent]) -> list[ReceivedEvent]:
    if not again:
        return []
    ids = sorted({item.event.request_id for item in again})
    stored = select(usage_event.c.request_id, usage_event.c.digest).where(usage_event.c.request_id.in_(ids))
    digests: dict[str, str] = {row.request_id: row.digest for row in connection.execute(stored)}
    conflicts = [item for item in again if digests[item.event.request_id] != item.digest]
    if conflicts:
        rows = [
            {"request_id": item.event.request_id, "digest": item.digest, "raw": item.raw[:RAW_BYTES_MAX]}
            for item in sorted(conflicts, key=lambda item: (item.event.request_id, item.digest))
        ]
        connection.execute(insert(usage_conflict).on_conflict_do_nothing(), rows)
    return conflicts


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
            "pricing": item.pricing.value,
            "price_id": item.price.price_id if item.price else None,
            "chained": True,
        }
        for item in priced
    ]
    written = insert_rows(
        connection, ledger_transaction, rows, returning=["request_id", "transaction_id", "recorded_ms"]
    )
    made = {row.request_id: (row.transaction_id, row.recorded_ms) for row in written}
    lines: list[dict[str, object]] = []
    links: list[ChainedEntry] = []
    digests = PriceDigests()
    for item in priced:
        event = item.event
        transaction_id, recorded_ms = made[event.request_id]
        posted = postings(item)
        lines += [posting_row(transaction_id, number, line) for number, line in enumerate(posted)]
        links.append(
            entry_of(
                events[event.request_id],
                [(line.account, line.holder, line.amount.picousd) for line in posted],
                digests.of(item.price),
                transaction_id=transaction_id,
                request_id=event.request_id,
                pricing=item.pricing.value,
                corrects=False,
                recorded_ms=recorded_ms,
            )
        )
    if lines:
        insert_rows(connection, ledger_posting, lines)
    add_links(connection, heads, links)


def _note_use(connection: Connection, events: Sequence[UsageEvent]) -> None:
    """Record when keys were last used."""
    latest: dict[str, int] = {}
    for event in events:
        latest[event.key_id] = max(event.ended_ms, latest.get(event.key_id, 0))
    if latest:
        # The same order everywhere, so that two consumers cannot deadlock.
        rows = [{"key_id": key_id, "last_used_ms": latest[key_id]} for key_id in sorted(latest)]
        statement = insert(api_key_use).values(rows)
        newest = func.greatest(api_key_use.c.last_used_ms, statement.excluded.last_used_ms)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["key_id"], set_={"last_used_ms": newest})
        )


def add_totals(connection: Connection, events: Iterable[UsageEvent]) -> None:
    """Add new events to the running totals of their instances."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for event in events:
        add = (event.billed.prompt, event.billed.output, event.absorbed.prompt, event.absorbed.output)
        total = sums[event.instance, event.epoch]
        total[:] = [before + more for before, more in zip(total, add, strict=True)]
    for (instance, epoch), total in sorted(sums.items()):
        add_total(connection, instance, epoch, dict(zip(TOTAL_COLUMNS, total, strict=True)))


def add_total(connection: Connection, instance: str, epoch: str, tokens: dict[str, int]) -> None:
    """Add tokens (by the names of `TOTAL_COLUMNS`) to what one run of an engine was metered for."""
    statement = insert(usage_total).values(instance=instance, epoch=epoch, **tokens)
    sums = {name: usage_total.c[name] + statement.excluded[name] for name in TOTAL_COLUMNS}
    connection.execute(statement.on_conflict_do_update(index_elements=["instance", "epoch"], set_=sums))


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


def event_row(event: UsageEvent, digest: str) -> dict[str, Any]:
    """The columns of `usage_event`: the event's fields, of which those with tokens have a column for each
    kind.
    """
    row: dict[str, Any] = msgspec.to_builtins(asdict(event))
    row["class"] = row.pop("class_")
    for tokens in ("produced", "delivered", "billed", "absorbed"):
        row |= {f"{tokens}_{kind}": count for kind, count in row.pop(tokens).items()}
    row |= {name: row.get(name, 0) for name in WRITTEN_COLUMNS}
    row["ignored"] = row["ignored"] or None
    return row | {"kind": "request", "version": EVENT_VERSION, "digest": digest}
