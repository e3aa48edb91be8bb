"""Chains of hashes over what is recorded: each tenant's entries in the order in which they were recorded, and
one chain ('') for what is on no tenant's bill. It owns how links are added and read.

An entry that an earlier version of billing recorded, or one from before there were chains, waits in
`usage_unchained` until `chain_waiting` adds it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Select, delete, literal_column, select, text
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.price_book import Price, prices_by_id
from billing.ledger.bulk_insert import insert_rows
from billing.ledger.chain_entry import NO_HASH, Parts, digest, entry, link, parts_of, price_document
from billing.ledger.checkpoints import note_days
from billing.ledger.dropped import proofs_of
from billing.ledger.event_days import are_those
from billing.moments import DAY_MS
from billing.schema.chain import usage_chain, usage_chain_head, usage_unchained
from billing.schema.clock import database_now_ms
from billing.schema.ledger import ledger_transaction, usage_event
from billing.wire.value import Value

# The chain of what no tenant pays.
HOUSE: Final = ""
# The account whose sum is an entry's amount.
_OWED: Final = "receivable"
_ENTRIES_AT_ONCE: Final = 500


class Head(Value, frozen=True):
    """The last link of a chain; `position` 0: it has none yet."""

    position: int
    hash: str
    chained_ms: int


class ChainedEntry(Value, frozen=True, kw_only=True):
    """An entry of the ledger, as it is to be chained. `facts`: what `chain_entry.entry` hashes beside the
    parts, but for its place.
    """

    chain: str
    transaction_id: int
    request_id: str | None
    recorded_ms: int
    facts: Mapping[str, Any]
    parts: Parts


def lock_heads(connection: Connection, chains: Iterable[str]) -> dict[str, Head]:
    """The last links of these chains, to which nobody else can add until the transaction ends."""
    wanted = sorted(set(chains))
    # The same order everywhere, so that two consumers cannot deadlock.
    held = (
        select(usage_chain_head)
        .where(usage_chain_head.c.chain.in_(wanted))
        .order_by(usage_chain_head.c.chain)
        .with_for_update()
    )
    heads = {
        row.chain: Head(row.position, row.hash.hex(), row.chained_ms) for row in connection.execute(held)
    }
    if missing := [chain for chain in wanted if chain not in heads]:
        rows = [
            {"chain": chain, "position": 0, "hash": bytes.fromhex(NO_HASH), "chained_ms": 0}
            for chain in missing
        ]
        connection.execute(insert(usage_chain_head).on_conflict_do_nothing(), rows)
        return lock_heads(connection, wanted)
    return heads


def add_links(connection: Connection, heads: dict[str, Head], entries: Sequence[ChainedEntry]) -> None:
    """Append entries, in this order, to the chains whose heads the caller has locked."""
    rows, ended = [], []
    for item in entries:
        head = heads[item.chain]
        position, chained_ms = head.position + 1, max(head.chained_ms, item.recorded_ms)
        if chained_ms // DAY_MS != head.chained_ms // DAY_MS and head.position:
            ended.append((item.chain, head.chained_ms, head.position, head.hash))
        place = {"chain": item.chain, "position": position, "chained_ms": chained_ms}
        made = link(head.hash, entry({**place, **item.facts}, item.parts))
        heads[item.chain] = Head(position, made, chained_ms)
        rows.append({
            **place, "transaction_id": item.transaction_id, "request_id": item.request_id,
            "hash": f"\\x{made}", "parts": f"\\x{item.parts.prefixes()}",
        })  # fmt: skip
    if not rows:
        return
    insert_rows(connection, usage_chain, rows)
    note_days(connection, ended)
    moved = [
        {"chain": chain, "position": head.position, "hash": f"\\x{head.hash}", "chained_ms": head.chained_ms}
        for chain, head in heads.items()
    ]
    connection.execute(_MOVE_HEADS, {"rows": orjson.dumps(moved).decode()})


_MOVE_HEADS: Final = text(
    "update usage_chain_head h set position = n.position, hash = n.hash, chained_ms = n.chained_ms "
    "from jsonb_populate_recordset(null::usage_chain_head, cast(:rows as jsonb)) n where n.chain = h.chain"
)


def entry_of(
    event: Mapping[Any, Any] | None,
    lines: Sequence[tuple[str, str, int]],
    price_digest: str,
    *,
    transaction_id: int,
    request_id: str | None,
    pricing: str | None,
    corrects: bool,
    recorded_ms: int,
    kind: str | None = None,
    subject: str | None = None,
    dropped: tuple[str, str] | None = None,
) -> ChainedEntry:
    """Of the columns of its event (None: it is of none) and of its transaction, and its postings in order
    (account, holder, pico-dollars). `kind` and `subject`: of an entry that is not of a request. `dropped`:
    the digests of its event's parts, in its place.
    """
    parts = parts_of(event, lines, price_digest)
    if dropped is not None:
        parts = replace(parts, event=dropped[0], internal=dropped[1])
    owed = sum([amount for account, _, amount in lines if account == _OWED])
    return ChainedEntry(
        chain=HOUSE if event is None else event.get("tenant") or HOUSE,
        transaction_id=transaction_id,
        request_id=request_id,
        recorded_ms=recorded_ms,
        facts={
            "request_id": request_id, "pricing": pricing, "corrects": corrects, "recorded_ms": recorded_ms,
            "amount_picousd": str(owed), "kind": kind, "subject": subject, "entry": transaction_id,
        },
        parts=parts,
    )  # fmt: skip


class PriceDigests:
    """The digest of each price, worked out once."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def of(self, price: Price | None) -> str:
        """'' of no price."""
        if price is None:
            return ""
        found = self._known.get(price.price_id)
        if found is None:
            found = self._known[price.price_id] = digest(price_document(price))
        return found


# The lines of an entry, in their order.
_LINES: Final[ColumnElement[Any]] = literal_column(
    "(select jsonb_agg(jsonb_build_array(account, holder, amount_picousd::text) order by line) "
    "from ledger_posting p where p.transaction_id = ledger_transaction.transaction_id)"
).label("lines")
_OF_ENTRY: Final = ledger_transaction.c
# An entry. The columns of its event have their own names (`read_entries`).
ENTRY_COLUMNS: Final = (
    _OF_ENTRY.transaction_id,
    _OF_ENTRY.request_id.label("of_request"),
    _OF_ENTRY.day.label("of_day"),
    _OF_ENTRY.kind.label("entry_kind"),
    _OF_ENTRY.subject,
    _OF_ENTRY.pricing,
    _OF_ENTRY.price_id,
    _OF_ENTRY.corrects.is_not(None).label("corrects"),
    _OF_ENTRY.recorded_ms.label("entry_recorded_ms"),
    _LINES,
)
_EVENT_COLUMNS: Final = tuple(column for column in usage_event.c if column.name != "recorded_ms")
_NO_EVENT: Final = dict.fromkeys(column.name for column in _EVENT_COLUMNS)


def read_entries(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    """The rows of a query with `ENTRY_COLUMNS`, each with the columns of its event, which are None if there
    is none; then `dropped` has the digests that retention has left of it. Events are read apart, so that only
    the partitions of their days are.
    """
    rows = connection.execute(query).mappings().all()
    days = {row["of_request"]: row["of_day"] for row in rows if row["of_request"] is not None}
    events: dict[Any, Mapping[Any, Any]] = {}
    if days:
        found = connection.execute(select(*_EVENT_COLUMNS).where(are_those(days))).mappings()
        events = {(each["request_id"], each["day"]): each for each in found}
    read = [{**row, **events.get((row["of_request"], row["of_day"]), _NO_EVENT)} for row in rows]
    gone = [row["transaction_id"] for row in read if row["of_request"] and row["request_id"] is None]
    proofs = proofs_of(connection, gone) if gone else {}
    return [{**row, "dropped": proofs.get(row["transaction_id"])} for row in read]


def stored_entry(row: Mapping[Any, Any], price_digest: str) -> ChainedEntry:
    """Of a row of `read_entries`."""
    return entry_of(
        row if row["request_id"] is not None else None,
        [(account, holder, int(amount)) for account, holder, amount in row["lines"] or ()],
        price_digest,
        transaction_id=row["transaction_id"],
        request_id=row["of_request"],
        pricing=row["pricing"],
        corrects=row["corrects"],
        recorded_ms=row["entry_recorded_ms"],
        kind=None if row["of_request"] is not None else row["entry_kind"],
        subject=row["subject"],
        dropped=row["dropped"],
    )


def entries_between(connection: Connection, chain: str, first: int, last: int) -> Iterator[Mapping[Any, Any]]:
    """The links at positions `first` to `last` with what they are of, some read at a time."""
    of = usage_chain.c
    links = select(of.position, of.chained_ms, of.hash, of.parts, *ENTRY_COLUMNS).select_from(
        usage_chain.join(ledger_transaction, ledger_transaction.c.transaction_id == of.transaction_id)
    )
    for begins in range(first, last + 1, _ENTRIES_AT_ONCE):
        ends = min(last, begins + _ENTRIES_AT_ONCE - 1)
        query = links.where(of.chain == chain, of.position.between(begins, ends)).order_by(of.position)
        yield from read_entries(connection, query)


def chain_waiting(connection: Connection, *, most: int, corrections: bool = False) -> int:
    """Chain so many entries that wait, the oldest first; `corrections`: only those that correct others.
    Returns how many there were. Entries that another process chains now are left out.
    """
    of_waiting = select(usage_unchained.c.transaction_id)
    if corrections:
        same = _OF_ENTRY.transaction_id == usage_unchained.c.transaction_id
        of_waiting = of_waiting.join(ledger_transaction, same).where(_OF_ENTRY.corrects.is_not(None))
    waiting = (
        of_waiting.order_by(usage_unchained.c.transaction_id)
        .limit(most)
        .with_for_update(skip_locked=True, of=usage_unchained)
    )
    ids = connection.execute(waiting).scalars().all()
    if not ids:
        return 0
    query = select(*ENTRY_COLUMNS).where(_OF_ENTRY.transaction_id.in_(ids)).order_by(_OF_ENTRY.transaction_id)
    rows = read_entries(connection, query)
    prices = prices_by_id(connection, sorted({row["price_id"] for row in rows} - {None}))
    digests = PriceDigests()
    entries = [stored_entry(row, digests.of(prices.get(row["price_id"]))) for row in rows]
    heads = lock_heads(connection, [each.chain for each in entries])
    # What waited was recorded before; it is in the chain from now on.
    now_ms = database_now_ms(connection)
    heads = {chain: replace(head, chained_ms=max(head.chained_ms, now_ms)) for chain, head in heads.items()}
    add_links(connection, heads, entries)
    connection.execute(delete(usage_unchained).where(usage_unchained.c.transaction_id.in_(ids)))
    return len(ids)
