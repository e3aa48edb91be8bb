"""The audit log: who changed what, from what to what, and why. It owns the reading of entries and the proof
that none was changed; the database writes them (`audit_row`), whoever makes a change and however.

Each entry holds the hash of the one before. So an entry that was changed, taken out or put in is found by
its number, unless all later ones and `audit_head` were written anew: against that, keep the head elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Text, cast, func, select, text

from billing.accounts.roles import Role
from billing.findings import Finding, FindingKind
from billing.page import Order, Page, PageRequest, read_page
from billing.schema.accounts import audit_head
from billing.schema.accounts import audit_log as table

_HASHED: Final = (
    "previous", "entry", "at_ms", "actor", "role", "action", "request_id", "why", "kind", "subject",
    "tenant_id", "before", "after",
)  # fmt: skip
_FIRST: Final = "0" * 64
_APPEND: Final = text("select audit_append(:kind, :subject, :tenant_id, null, cast(:after as json))")
_READ_AT_ONCE: Final = 1_000
_NAMED_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What a transaction is part of. `action`: the route. `why`: the reason that was given."""

    actor: str
    role: Role
    action: str
    request_id: str
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One changed row. `kind`: its table; `subject`: its key. `before` and `after`: the columns that differ;
    None: there was no such row, or there is none any more.
    """

    entry: int
    at_ms: int
    actor: str
    role: str | None
    action: str | None
    request_id: str | None
    why: str | None
    kind: str
    subject: str
    tenant_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """The number and the hash of the last entry."""

    entry: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Entries that match all that is given. `action`: a part of it."""

    tenant_id: str | None = None
    actor: str | None = None
    action: str | None = None
    kind: str | None = None
    subject: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


_NEWEST_FIRST: Final[Order[Entry]] = Order(
    "audit_log", lambda entry: (entry.entry,), (int,), (table.c.entry,), descending=True
)


def sign(connection: Connection, act: Act) -> None:
    """What this transaction changes is said to be this act. Without it the entries name the connection."""
    said = json.dumps({name: value for name, value in asdict(act).items() if value is not None})
    connection.execute(select(func.set_config("taas.audit", said, True)))


def append(
    connection: Connection, kind: str, subject: str, after: Mapping[str, Any], *, tenant_id: str | None
) -> None:
    """Log what changes no row of an audited table. The last of a transaction: it locks the log's head."""
    said = {"kind": kind, "subject": subject, "tenant_id": tenant_id, "after": json.dumps(dict(after))}
    connection.execute(_APPEND, said)


def list_page(connection: Connection, asked: PageRequest, wanted: Wanted) -> Page[Entry]:
    """Entries, the newest first."""
    query = select(table)
    for column, value in (
        (table.c.tenant_id, wanted.tenant_id), (table.c.actor, wanted.actor), (table.c.kind, wanted.kind),
        (table.c.subject, wanted.subject),
    ):  # fmt: skip
        if value is not None:
            query = query.where(column == value)
    if wanted.action is not None:
        query = query.where(table.c.action.in_(_actions(connection, wanted.action)))
    if wanted.since_ms is not None:
        query = query.where(table.c.at_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        query = query.where(table.c.at_ms < wanted.until_ms)
    return read_page(connection, query, _NEWEST_FIRST, lambda row: Entry(**row._mapping), asked)


# Each action once, by its index: there are some hundred, however many entries.
_ACTIONS: Final = text("""
with recursive found (action) as (
  (select action from audit_log where action is not null order by action limit 1)
  union all
  select (select l.action from audit_log l where l.action > found.action order by l.action limit 1)
  from found where found.action is not null
)
select action from found where action is not null
""")


def _actions(connection: Connection, part: str) -> list[str]:
    """Those that have this in them, in any case."""
    every = connection.execute(_ACTIONS).scalars()
    return [action for action in every if part.casefold() in action.casefold()]


def head(connection: Connection) -> Head:
    """The last entry. Whoever keeps its hash elsewhere can tell whether the chain was written anew."""
    row = connection.execute(select(audit_head.c.entry, audit_head.c.hash)).one_or_none()
    return Head(0, "") if row is None else Head(row.entry, row.hash)


def check(connection: Connection, after: Head | None = None) -> list[Finding]:
    """Recompute the chain, from the beginning or after an entry that had this hash. Findings name the entries
    that are not what was written.
    """
    wrong = list(_differences(connection, after or Head(0, _FIRST)))
    if not wrong:
        return []
    return [
        Finding(
            kind=FindingKind.AUDIT_LOG_DIFFERS,
            message="entries of the audit log are not as they were written",
            count=len(wrong),
            ids=wrong[:_NAMED_MAX],
        )
    ]


def _differences(connection: Connection, after: Head) -> Iterator[str]:
    """The transaction must see one state of both tables."""
    query = select(*TEXTS, table.c.hash, table.c.entry.label("number")).where(table.c.entry > after.entry)
    query = query.order_by(table.c.entry)
    rows: Iterable[Row[Any]] = connection.execute(query.execution_options(yield_per=_READ_AT_ONCE))
    number, previous = after.entry, after.hash
    for row in rows:
        number += 1
        if number < row.number:
            yield _missing(number, row.number - 1)
            number, previous = row.number, row.previous
        if hash_of(row) != row.hash:
            yield f"entry {row.number}: it was changed"
        elif row.previous != previous:
            yield f"entry {row.number}: the one before it was changed"
        previous = row.hash
    last = head(connection)
    if last.entry > number:
        yield _missing(number + 1, last.entry)
    elif last != Head(number, previous):
        yield f"entry {number}: it is not the last that was written"


TEXTS: Final = [cast(table.c[name], Text).label(name) for name in _HASHED]


def _missing(first: int, last: int) -> str:
    return f"entry {first}: it is missing" if first == last else f"entry {first} to {last}: they are missing"


def hash_of(row: Row[Any]) -> str:
    """As `audit_append` computes it in SQL."""
    values = (row._mapping[name] for name in _HASHED)
    said = ("-" if value is None else f"{len(value.encode())}:{value}" for value in values)
    return hashlib.sha256(",".join(said).encode()).hexdigest()
