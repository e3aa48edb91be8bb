"""The export of a tenant's usage: all that is needed to work out its chain, receipts and invoices without us,
as lines of JSON. It owns their form; `deploy/taas_verify.py` reads them.

It reads some entries at a time, and what it has said it never needs again: entries do not change, and later
ones are not in it.
"""

import hashlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, select

from billing.catalogue.price_book import Price, prices_by_id
from billing.catalogue.tenants import Tenant
from billing.ledger import checkpoints
from billing.ledger.accounts import EntryKind
from billing.ledger.chain import PriceDigests, entries_between, stored_entry
from billing.ledger.chain_entry import NO_HASH, canonical, price_document, public_part
from billing.ledger.checkpoints import Checkpoint
from billing.schema.chain import usage_chain, usage_chain_head
from billing.schema.clock import database_now_ms
from billing.schema.invoices import invoice
from billing.schema.ledger import ledger_transaction
from billing.wire.evidence import signed_by
from billing.wire.tokens import TOKEN_KINDS, by_kind

VERSION: Final = 2
_SIGNED: Final = b"taas usage export 2\n"


@dataclass(frozen=True, slots=True)
class Span:
    """The entries of a tenant's chain that were recorded in [from, until): positions `first` to `last`, after
    the link with the hash `previous`. There are none if `last` is before `first`.
    """

    from_ms: int
    until_ms: int
    first: int
    last: int
    previous: str


def span_of(connection: Connection, chain: str, from_ms: int, until_ms: int) -> Span:
    """What was recorded in [from, until)."""
    before = position_before(connection, chain, from_ms)
    last = max(before, position_before(connection, chain, until_ms))
    return Span(from_ms, until_ms, before + 1, last, _hash_at(connection, chain, before))


def export_usage(
    connection: Connection, tenant: Tenant, span: Span, key: Ed25519PrivateKey | None
) -> Iterator[bytes]:
    """The lines, each with its line feed. The last link, and all lines together, are signed if there is a
    key. The caller keeps the connection while it reads them.
    """
    lines, told = _lines(connection, tenant, span, key), hashlib.sha256()
    while True:
        try:
            line = next(lines)
        except StopIteration as ended:
            end: dict[str, Any] = ended.value
            break
        told.update(line)
        yield line
    yield _line("end", {**end, **signed_end(told.hexdigest(), key)})


def signed_end(sha256: str, key: Ed25519PrivateKey | None) -> dict[str, str]:
    """That these are all lines: their SHA-256, signed."""
    if key is None:
        return {"sha256": sha256}
    name, signature = signed_by(key, _SIGNED + sha256.encode())
    return {"sha256": sha256, "key": name, "signature": signature}


def _lines(
    connection: Connection, tenant: Tenant, span: Span, key: Ed25519PrivateKey | None
) -> Generator[bytes, None, dict[str, Any]]:
    """All lines but the last; returns how many entries they have, and of which amount."""
    chain = tenant.tenant_id
    now_ms = database_now_ms(connection)
    yield _line("header", {
        "version": VERSION, "tenant": {"id": chain, "name": tenant.name}, "currency": "USD",
        "from_ms": span.from_ms, "until_ms": span.until_ms, "exported_ms": now_ms,
        "first": span.first, "last": span.last, "previous": span.previous,
    })  # fmt: skip
    yield from _invoices(connection, chain, span)
    amount, position, hash_ = 0, span.first - 1, span.previous
    days = checkpoints.between(connection, chain, span.first - 1, span.last)
    due = next(days, None)
    if due is not None and due.position == position:
        yield _line("checkpoint", due.to_json())
        due = next(days, None)
    digests, prices = PriceDigests(), dict[int, Price]()
    for row in entries_between(connection, chain, span.first, span.last):
        if row["price_id"] is not None and row["price_id"] not in prices:
            prices |= prices_by_id(connection, [row["price_id"]])
            yield _line("price", price_document(prices[row["price_id"]]))
        price = prices.get(row["price_id"])
        record = _entry(row, price, digests.of(price))
        amount += int(record["entry"]["amount_picousd"])
        position, hash_ = row["position"], record["hash"]
        yield _line("entry", record)
        if due is not None and due.position == position:
            yield _line("checkpoint", due.to_json())
            due = next(days, None)
    if position:
        head = Checkpoint(chain=chain, position=position, hash=hash_, at_ms=now_ms)
        yield _line("checkpoint", (head if key is None else checkpoints.signed(head, key)).to_json())
    return {"entries": max(0, span.last - span.first + 1), "amount_picousd": str(amount)}


def _entry(row: Mapping[Any, Any], price: Price | None, price_digest: str) -> dict[str, Any]:
    item = stored_entry(row, price_digest)
    lines = [[account, holder, amount] for account, holder, amount in row["lines"] or ()]
    said = {
        "position": row["position"],
        "chained_ms": row["chained_ms"],
        "entry": {name: value for name, value in item.facts.items() if value},
        "event": None if row["request_id"] is None else public_part(row),
        # In place of an event that retention has dropped.
        "dropped": None if row["dropped"] is None else {"event": row["dropped"][0]},
        "internal": item.parts.internal,
        "postings": lines,
        "price_id": row["price_id"],
        "receipt": None if price is None or row["dropped"] else _receipt(row, price),
        "parts": row["parts"].hex(),
        "hash": row["hash"].hex(),
    }
    return {name: value for name, value in said.items() if value}


def _receipt(row: Mapping[Any, Any], price: Price) -> list[dict[str, Any]]:
    """A line for each kind of tokens that there are: tokens × price = amount, in pico-dollars."""
    tokens = by_kind(*(row[f"billed_{name}"] for name in ("prompt", "cached", "written", "output")))
    return [
        {"kind": kind, "tokens": count, "picousd": each, "amount_picousd": str(count * each)}
        for kind, count, each in zip(TOKEN_KINDS, tokens, price.by_kind, strict=True)
        if count
    ]


def _invoices(connection: Connection, chain: str, span: Span) -> Iterator[bytes]:
    """Those that were issued since the span began, of periods that ended in it or before, in the order of
    their entries. Each follows the one before it, so whoever verifies them sees where one is missing.
    """
    of, entry = invoice.c, ledger_transaction.c
    its_own = (entry.subject == of.number) & (entry.kind == EntryKind.INVOICE.value)
    query = (
        select(of.number, of.document, of.sha256, of.key_id, of.signature)
        .outerjoin(ledger_transaction, its_own)
        .where(of.tenant_id == chain, of.issued_ms >= span.from_ms, of.until_ms <= span.until_ms)
    )
    for row in connection.execute(query.order_by(entry.transaction_id, of.number)):
        said = {"number": row.number, "sha256": row.sha256, "key": row.key_id, "signature": row.signature}
        # The document as it was issued, byte for byte: it is canonical JSON.
        head = canonical({"record": "invoice", **said})
        yield head[:-1] + b',"document":' + bytes(row.document) + b"}\n"


def position_before(connection: Connection, chain: str, moment_ms: int) -> int:
    """Of the last link before this moment; 0 if there is none. Links are in the order of their moments."""
    head = select(usage_chain_head.c.position).where(usage_chain_head.c.chain == chain)
    low, high = 0, connection.execute(head).scalar_one_or_none() or 0
    while low < high:
        middle = (low + high + 1) // 2
        if _link(connection, chain, middle).chained_ms < moment_ms:
            low = middle
        else:
            high = middle - 1
    return low


def _hash_at(connection: Connection, chain: str, position: int) -> str:
    found: bytes = _link(connection, chain, position).hash if position else bytes.fromhex(NO_HASH)
    return found.hex()


def _link(connection: Connection, chain: str, position: int) -> Any:
    """The link at this position, or the first after it where that was removed."""
    of = usage_chain.c
    query = select(of.chained_ms, of.hash).where(of.chain == chain, of.position >= position)
    return connection.execute(query.order_by(of.position).limit(1)).one()


def _line(record: str, fields: Mapping[str, Any]) -> bytes:
    return canonical({"record": record, **fields}) + b"\n"
