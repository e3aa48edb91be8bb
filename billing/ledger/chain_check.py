"""Checks the chains: every entry of the ledger is in one, and is what was chained. It names what differs, and
corrects nothing.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, select, text

from billing.catalogue.price_book import Price, prices_by_id
from billing.findings import Finding, FindingKind
from billing.ledger.chain import ENTRY_COLUMNS, PriceDigests, read_entries, stored_entry
from billing.ledger.chain_entry import NO_HASH, PART_BYTES, PART_NAMES, Parts, entry, link
from billing.schema.chain import usage_chain, usage_chain_head
from billing.schema.ledger import ledger_transaction

_LINKS_AT_ONCE: Final = 1000
_IDS_MAX: Final = 20
_UNCHAINED: Final = """
select coalesce(t.request_id, t.kind || ' ' || t.subject) as id, count(*) over () as total
from ledger_transaction t
where not exists (select from usage_chain c where c.transaction_id = t.transaction_id)
  and not exists (select from usage_unchained u where u.transaction_id = t.transaction_id)
order by t.transaction_id limit :most
"""


@dataclass(slots=True)
class ChainReport:
    """What was checked, and what differs: a message and the names that it is about. `upto`: to which position
    and hash each chain was checked.
    """

    links: int = 0
    upto: dict[str, tuple[int, str]] = field(default_factory=dict)
    differences: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def differs(self, message: str, name: str) -> None:
        """Note it, once for each name."""
        if name not in self.differences[message]:
            self.differences[message].append(name)

    def findings(self) -> list[Finding]:
        """One for each kind of difference."""
        return [
            Finding(
                kind=FindingKind.CHAIN_BROKEN, message=message, count=len(names), ids=tuple(names[:_IDS_MAX])
            )
            for message, names in self.differences.items()
        ]


def check_chains(
    connection: Connection, since: Mapping[str, tuple[int, str]] | None = None, *, most: int | None = None
) -> ChainReport:
    """It reads every entry of the ledger, some thousand at a time. `since`: only links after these positions,
    which had these hashes; a chain that is not named is read from its beginning. It stops after `most` links,
    more or less.
    """
    report = ChainReport()
    for head in connection.execute(select(usage_chain_head).order_by(usage_chain_head.c.chain)).all():
        position, hash_ = (since or {}).get(head.chain, (0, NO_HASH))
        last = _Last(position, hash_, hash_)
        left = None if most is None else most - report.links
        ended = left is None or left > 0
        if (position, hash_) != (head.position, head.hash.hex()) and ended:
            ended = _check_links(connection, head.chain, last, report, left)
        report.upto[head.chain] = last.position, last.hash
        if ended and (last.position, last.hash) != (head.position, head.hash.hex()):
            report.differs(
                "chains that do not end where they ended: links were removed at the end, or added",
                f"{_name(head.chain)} {head.position}",
            )
    if since is not None:
        return report
    rows = connection.execute(text(_UNCHAINED), {"most": _IDS_MAX}).all()
    for row in rows:
        report.differs("entries that are in no chain", row.id)
    return report


@dataclass(slots=True)
class _Last:
    """Where a chain was checked to. `expected`: the hash as it follows from what is stored beside it."""

    position: int = 0
    hash: str = NO_HASH
    expected: str = NO_HASH


def _check_links(
    connection: Connection, chain: str, last: _Last, report: ChainReport, most: int | None
) -> bool:
    """The links after the last one. Returns False if it stopped before the chain's end."""
    digests, prices = PriceDigests(), dict[int, Price]()
    until = None if most is None else report.links + most
    for rows in _read(connection, chain, last.position):
        wanted = {row["price_id"] for row in rows} - prices.keys() - {None}
        prices |= prices_by_id(connection, sorted(wanted))
        for row in rows:
            report.links += 1
            if row["position"] != last.position + 1:
                place = f"{_name(chain)} {last.position + 1}–{row['position'] - 1}"
                report.differs("links that are missing from their chain", place)
                last.hash = last.expected = ""
            _check_link(row, last, digests.of(prices.get(row["price_id"])), report)
        if until is not None and report.links >= until:
            return False
    return True


def _read(connection: Connection, chain: str, after: int) -> Iterator[Sequence[Mapping[Any, Any]]]:
    """The links of a chain after this position with what they are of, some at a time."""
    of = usage_chain.c
    links = select(
        of.chain, of.position, of.chained_ms, of.hash, of.parts, of.request_id.label("chained_request"),
        of.transaction_id.label("chained_transaction"), *ENTRY_COLUMNS,
    ).select_from(
        usage_chain.outerjoin(ledger_transaction, ledger_transaction.c.transaction_id == of.transaction_id)
    )  # fmt: skip
    while True:
        query = (
            links.where(of.chain == chain, of.position > after).order_by(of.position).limit(_LINKS_AT_ONCE)
        )
        rows = read_entries(connection, query)
        if not rows:
            return
        yield rows
        after = rows[-1]["position"]


def _check_link(row: Mapping[Any, Any], last: _Last, price_digest: str, report: ChainReport) -> None:
    name = (
        row["chained_request"]
        or f"{row['entry_kind'] or 'entry'} {row['subject'] or row['chained_transaction']}"
    )
    stored: bytes = row["hash"]
    previous = [each for each in dict.fromkeys((last.hash, last.expected)) if each]
    last.position, last.hash, last.expected = row["position"], stored.hex(), ""
    gone = row["of_request"] is not None and row["request_id"] is None and row["dropped"] is None
    if row["transaction_id"] is None or gone:
        report.differs("entries of the ledger that are gone, or whose usage event is", name)
        return
    item = stored_entry(row, price_digest)
    place = {"chain": row["chain"], "position": row["position"], "chained_ms": row["chained_ms"]}
    document = entry({**place, **item.facts}, item.parts)
    hashes = [link(each, document) for each in previous]
    different = _different(row["parts"], item.parts)
    for part in different:
        whose = f"price {row['price_id']}" if part == "price" else name
        report.differs(f"not as it was recorded: {_WORDS[part]}", whose)
    moved = bool(hashes) and stored.hex() not in hashes
    if moved:
        last.expected = hashes[0]
    if not different and (moved or row["chained_request"] != row["of_request"]):
        report.differs(_PLACE, f"{name} ({_name(row['chain'])} {row['position']})")


def _different(chained: bytes, parts: Parts) -> list[str]:
    """Which parts of an entry are not what was chained."""
    now = bytes.fromhex(parts.prefixes())
    spans = ((name, slice(at * PART_BYTES, (at + 1) * PART_BYTES)) for at, name in enumerate(PART_NAMES))
    return [name for name, span in spans if chained[span] != now[span]]


_PLACE: Final = (
    "not as it was recorded: its place in the chain, its moment, its pricing or amount, or the link itself"
)
_WORDS: Final = {
    "event": "the usage event of these requests",
    "internal": "in the usage event of these requests, what its tenant does not see",
    "postings": "the postings of these entries",
    "price": "the prices of these numbers",
}


def _name(chain: str) -> str:
    return chain or "(no tenant)"
