"""Usage checkpoints: the last link of each chain on each day (UTC), signed, so that nobody can rewrite what
was recorded until then. The audit log is one of the chains: its entries are the links. It owns the document
that is signed, and when a day is over.

A day without a link has none: the checkpoint before it holds on.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Connection, and_, exists, func, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import distinct_on, insert

from billing.findings import Finding, FindingKind
from billing.ledger.chain_entry import canonical
from billing.moments import DAY_MS, day_of
from billing.page import Order, Page, PageRequest, read_page
from billing.schema.accounts import audit_head, audit_log
from billing.schema.chain import usage_chain, usage_chain_head, usage_checkpoint
from billing.schema.clock import database_now_ms
from billing.wire.evidence import key_id, signed_by

VERSION: Final = 1
_SIGNED: Final = b"taas usage checkpoint 1\n"
# In one transaction; signing takes about 50 µs each.
_SIGNED_AT_ONCE: Final = 1000
_IDS_MAX: Final = 20
# The chain of the audit log; no tenant has this id.
AUDIT_LOG: Final = "audit_log"


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


def end_days(connection: Connection) -> None:
    """Note where chains stood whose last link is of a day that is over. Whoever adds a link of a later day
    has noted it already, but for the audit log.
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
    over = [(row.chain, row.chained_ms, row.position, row.hash.hex()) for row in connection.execute(ended)]
    note_days(connection, over + _audit_log_before(connection, today_ms))


def _audit_log_before(connection: Connection, today_ms: int) -> list[tuple[str, int, int, str]]:
    """Its last entry of a day that is over, if that is not noted yet."""
    of = audit_log.c
    last = select(of.entry, of.at_ms, of.hash).where(of.at_ms < today_ms)
    last = last.order_by(of.at_ms.desc(), of.entry.desc()).limit(1)
    found = last.subquery()
    noted = exists().where(
        usage_checkpoint.c.chain == AUDIT_LOG, usage_checkpoint.c.position == found.c.entry
    )
    query = select(found).where(~noted)
    return [(AUDIT_LOG, row.at_ms, row.entry, row.hash) for row in connection.execute(query)]


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
    name, signature = signed_by(key, checkpoint.signed_text())
    return replace(checkpoint, key=name, signature=signature)


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


def head_of(connection: Connection, chain: str) -> Checkpoint | None:
    """Where a chain stands now, not signed; None if it has no link."""
    now_ms = database_now_ms(connection)
    if chain == AUDIT_LOG:
        row = connection.execute(
            select(audit_head.c.entry.label("position"), audit_head.c.hash)
        ).one_or_none()
    else:
        of = usage_chain_head.c
        place = select(of.position, func.encode(of.hash, "hex").label("hash")).where(of.chain == chain)
        row = connection.execute(place).one_or_none()
    if row is None or not row.position:
        return None
    return Checkpoint(chain=chain, position=row.position, hash=row.hash, at_ms=now_ms)


def between(connection: Connection, chain: str, first: int, last: int) -> Iterator[Checkpoint]:
    """The signed ones of a chain at these positions, in their order."""
    of = usage_checkpoint.c
    query = select(usage_checkpoint).where(
        of.chain == chain, of.signature.is_not(None), of.position >= first, of.position <= last
    )
    for row in connection.execute(query.order_by(of.position)).mappings():
        yield _read(row)


def newest(connection: Connection) -> dict[str, Checkpoint]:
    """The newest signed one of each chain."""
    of = usage_checkpoint.c
    query = select(usage_checkpoint).where(of.signature.is_not(None)).ext(distinct_on(of.chain))
    rows = connection.execute(query.order_by(of.chain, of.day.desc())).mappings()
    return {row["chain"]: _read(row) for row in rows}


def check_checkpoints(
    connection: Connection, public: Ed25519PublicKey | None, *, only_newest: bool = False
) -> list[Finding]:
    """Whether chains still have the links that were signed, and whether the signatures are of this key. Those
    of another key are not checked. `only_newest`: of each chain the newest signed one.
    """
    of = usage_checkpoint.c
    only = []
    if only_newest:
        latest = [(chain, each.day) for chain, each in newest(connection).items()]
        only = [tuple_(of.chain, of.day).in_(latest)]
    there = and_(usage_chain.c.chain == of.chain, usage_chain.c.position == of.position)
    joined = select(usage_checkpoint).select_from(usage_checkpoint.outerjoin(usage_chain, there))
    differs = joined.where(
        *only, of.chain != AUDIT_LOG, or_(usage_chain.c.hash.is_(None), usage_chain.c.hash != of.hash)
    )
    moved = [_name(row) for row in connection.execute(differs).mappings()]
    message = "usage checkpoints of which the chain does not have the link any more"
    found = _finding(FindingKind.CHAIN_BROKEN, message, moved)
    entries = select(usage_checkpoint).select_from(
        usage_checkpoint.outerjoin(audit_log, audit_log.c.entry == of.position)
    )
    hash_ = func.encode(of.hash, "hex")
    rewritten = entries.where(
        *only, of.chain == AUDIT_LOG, or_(audit_log.c.hash.is_(None), audit_log.c.hash != hash_)
    )
    message = "ends of days of which the audit log does not have the signed entry any more"
    gone = [str(row["day"]) for row in connection.execute(rewritten).mappings()]
    found += _finding(FindingKind.AUDIT_LOG_DIFFERS, message, gone)
    if public is not None:
        query = select(usage_checkpoint).where(*only, of.key_id == key_id(public))
        rows = connection.execute(query).mappings()
        wrong = [_name(row) for row in rows if not _is_signed(_read(row), public)]
        found += _finding(
            FindingKind.CHAIN_BROKEN, "usage checkpoints that are not as they were signed", wrong
        )
    return found


def _finding(kind: FindingKind, message: str, names: list[str]) -> list[Finding]:
    if not names:
        return []
    return [Finding(kind=kind, message=message, count=len(names), ids=tuple(names[:_IDS_MAX]))]


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
