"""Usage checkpoints: the last link of each chain on each day (UTC), signed, so that nobody can rewrite what
was recorded until then. It owns the document that is signed, and when a day is over.

A day without a link has none: the checkpoint before it holds on.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Connection, and_, exists, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.findings import Finding, FindingKind
from billing.ledger.chain_entry import canonical
from billing.page import Order, Page, PageRequest, read_page
from billing.schema.chain import usage_chain, usage_chain_head, usage_checkpoint
from billing.schema.clock import database_now_ms
from billing.wire.evidence import key_id

VERSION: Final = 1
DAY_MS: Final = 86_400_000
_SIGNED: Final = b"taas usage checkpoint 1\n"
# In one transaction; signing takes about 50 µs each.
_SIGNED_AT_ONCE: Final = 1000
_IDS_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a chain stood at the end of a day; with `at_ms` instead, at a moment. Signed or not yet."""

    chain: str
    position: int
    hash: str
    day: str | None = None
    at_ms: int | None = None
    key: str | None = None
    signature: str | None = None

    def document(self) -> dict[str, Any]:
        """What is signed."""
        fields = {
            "version": VERSION, "tenant": self.chain, "day": self.day, "at_ms": self.at_ms,
            "position": self.position, "hash": self.hash,
        }  # fmt: skip
        return {name: value for name, value in fields.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The document and its signature (base64 of Ed25519)."""
        return {"checkpoint": self.document(), "key": self.key, "signature": self.signature}

    def signed_text(self) -> bytes:
        """The bytes that are signed."""
        return _SIGNED + canonical(self.document())


def day_of(moment_ms: int) -> str:
    """The UTC day of a moment."""
    return datetime.fromtimestamp(moment_ms // 1000, UTC).date().isoformat()


def end_days(connection: Connection) -> None:
    """Note where chains stood whose last link is of a day that is over. Whoever adds a link of a later day
    has noted it already.
    """
    head = usage_chain_head.c
    today_ms = database_now_ms(connection) // DAY_MS * DAY_MS
    noted = exists().where(
        usage_checkpoint.c.chain == head.chain, usage_checkpoint.c.position == head.position
    )
    # Locked, so that a link of that day that is being added is waited for.
    ended = (
        select(usage_chain_head)
        .where(head.chained_ms < today_ms, head.position > 0, ~noted)
        .order_by(head.chain)
        .with_for_update()
    )
    note_days(
        connection,
        [(row.chain, row.chained_ms, row.position, row.hash.hex()) for row in connection.execute(ended)],
    )


def note_days(connection: Connection, ended: list[tuple[str, int, int, str]]) -> None:
    """Of each chain: a moment of the day, the position and hash of its last link of that day."""
    if not ended:
        return
    rows = [
        {"chain": chain, "day": day_of(moment_ms), "position": position, "hash": bytes.fromhex(hash_)}
        for chain, moment_ms, position, hash_ in ended
    ]
    connection.execute(insert(usage_checkpoint).on_conflict_do_nothing(), rows)


def sign_days(connection: Connection, key: Ed25519PrivateKey) -> int:
    """Sign what is not signed yet, some at a time. Returns how many there were."""
    of = usage_checkpoint.c
    waiting = (
        select(usage_checkpoint)
        .where(of.signature.is_(None))
        .limit(_SIGNED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    found = [_read(row) for row in connection.execute(waiting).mappings()]
    for each in found:
        made = signed(each, key)
        same = and_(of.chain == each.chain, of.day == each.day)
        values = {"key_id": made.key, "signature": made.signature}
        connection.execute(update(usage_checkpoint).where(same).values(values))
    return len(found)


def signed(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> Checkpoint:
    """The same with a signature."""
    return Checkpoint(
        chain=checkpoint.chain,
        position=checkpoint.position,
        hash=checkpoint.hash,
        day=checkpoint.day,
        at_ms=checkpoint.at_ms,
        key=key_id(key.public_key()),
        signature=base64.b64encode(key.sign(checkpoint.signed_text())).decode(),
    )


_NEWEST_FIRST: Final[Order[Checkpoint]] = Order(
    "checkpoints",
    lambda each: (str(each.day),),
    (str,),
    (usage_checkpoint.c.day,),
    descending=True,
)


def list_checkpoints(connection: Connection, chain: str, asked: PageRequest) -> Page[Checkpoint]:
    """The signed ones of a chain, newest first."""
    of = usage_checkpoint.c
    query = select(usage_checkpoint).where(of.chain == chain, of.signature.is_not(None))
    return read_page(connection, query, _NEWEST_FIRST, lambda row: _read(row._mapping), asked)


def between(connection: Connection, chain: str, first: int, last: int) -> Iterator[Checkpoint]:
    """The signed ones of a chain at these positions, in their order."""
    of = usage_checkpoint.c
    query = select(usage_checkpoint).where(
        of.chain == chain, of.signature.is_not(None), of.position >= first, of.position <= last
    )
    for row in connection.execute(query.order_by(of.position)).mappings():
        yield _read(row)


def check_checkpoints(connection: Connection, public: Ed25519PublicKey | None) -> list[Finding]:
    """Whether chains still have the links that were signed, and whether the signatures are of this key. Those
    of another key are not checked.
    """
    of = usage_checkpoint.c
    there = and_(usage_chain.c.chain == of.chain, usage_chain.c.position == of.position)
    joined = select(usage_checkpoint).select_from(usage_checkpoint.outerjoin(usage_chain, there))
    differs = joined.where(or_(usage_chain.c.hash.is_(None), usage_chain.c.hash != of.hash))
    moved = [_name(row) for row in connection.execute(differs).mappings()]
    message = "usage checkpoints of which the chain does not have the link any more"
    found = _finding(message, moved)
    if public is not None:
        rows = connection.execute(select(usage_checkpoint).where(of.key_id == key_id(public))).mappings()
        wrong = [_name(row) for row in rows if not _is_signed(_read(row), public)]
        found += _finding("usage checkpoints that are not as they were signed", wrong)
    return found


def _finding(message: str, names: list[str]) -> list[Finding]:
    if not names:
        return []
    ids = tuple(names[:_IDS_MAX])
    return [Finding(kind=FindingKind.CHAIN_BROKEN, message=message, count=len(names), ids=ids)]


def _name(row: Mapping[Any, Any]) -> str:
    return f"{row['chain'] or '(no tenant)'} {row['day']}"


def _is_signed(checkpoint: Checkpoint, public: Ed25519PublicKey) -> bool:
    try:
        public.verify(base64.b64decode(checkpoint.signature or "", validate=True), checkpoint.signed_text())
    except (InvalidSignature, ValueError):
        return False
    return True


def _read(row: Mapping[Any, Any]) -> Checkpoint:
    return Checkpoint(
        chain=row["chain"],
        day=row["day"],
        position=row["position"],
        hash=row["hash"].hex(),
        key=row["key_id"],
        signature=row["signature"],
    )
