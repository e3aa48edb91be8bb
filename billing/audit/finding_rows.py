"""Findings as rows: opened when an audit sees something, closed when it is gone, with an owner and a reason.
It owns the table; what is found is the audits' business.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update

from billing.findings import OF_FACTS, Finding, FindingKind
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, NotFound
from billing.schema.clock import database_now_ms
from billing.schema.findings import finding as table
from billing.schema.locks import AdvisoryLock

# What an audit says of its own work, once: nobody need look at it later.
_NEWS: Final = frozenset({FindingKind.RECONCILED, FindingKind.NOT_DRAINED})
# Figures in a message change while it stays the same finding.
_FIGURES: Final = re.compile(r"[0-9][0-9.,]*")


class State(StrEnum):
    """Of a finding. `closed`: it is gone, and nobody had resolved it."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """One of them. `said`: as `Finding.to_json`. `gone_ms`: since when no audit sees it."""

    finding: str
    kind: str
    said: dict[str, Any]
    state: State
    owner: str | None
    reason: str | None
    opened_ms: int
    changed_ms: int
    gone_ms: int | None


_NEWEST_FIRST: Final[Order[FindingRow]] = Order(
    "findings",
    lambda each: (each.opened_ms, each.finding),
    (int, str),
    (table.c.opened_ms, table.c.finding_id),
    descending=True,
)


def hold_off(connection: Connection) -> None:
    """Block what other audits would keep until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.FINDINGS)))


def keep(
    connection: Connection,
    found: Iterable[Finding],
    *,
    facts: bool,
    only: Callable[[str, str], bool] | None = None,
) -> None:
    """Make the rows what an audit found; `facts`: it has read everything back; `only`: it looked for findings
    of these kinds that are about this alone. What was resolved is opened again only if its figures have
    changed.
    """
    hold_off(connection)
    now_ms = database_now_ms(connection)
    there = {
        (row.kind, row.about): row
        for row in connection.execute(select(table).where(table.c.gone_ms.is_(None)))
    }
    seen = {(each.kind.value, _about(each)): each for each in found if each.kind not in _NEWS}
    for key, each in sorted(seen.items()):
        said = each.to_json()
        row = there.get(key)
        if row is None:
            made = {"kind": key[0], "about": key[1], "said": said, "opened_ms": now_ms, "changed_ms": now_ms}
            connection.execute(insert(table).values(finding_id=f"fnd_{secrets.token_hex(8)}", **made))
        elif row.said != said:
            changes: dict[str, Any] = {"said": said, "changed_ms": now_ms}
            if row.state == State.RESOLVED.value and _size(said) != _size(row.said):
                changes["state"] = State.OPEN.value
            connection.execute(update(table).where(table.c.finding_id == row.finding_id).values(**changes))
    not_asked = set() if facts else {kind.value for kind in OF_FACTS}
    for key, row in there.items():
        if key not in seen and key[0] not in not_asked and (only is None or only(*key)):
            state = row.state if row.state == State.RESOLVED.value else State.CLOSED.value
            gone = {"gone_ms": now_ms, "changed_ms": now_ms, "state": state}
            connection.execute(update(table).where(table.c.finding_id == row.finding_id).values(**gone))


def list_page(
    connection: Connection, asked: PageRequest, *, state: State | None, kind: FindingKind | None, gone: bool
) -> Page[FindingRow]:
    """Newest first; those that are gone only if asked for."""
    query = select(table)
    if state is not None:
        query = query.where(table.c.state == state.value)
    if kind is not None:
        query = query.where(table.c.kind == kind.value)
    if not gone:
        query = query.where(table.c.gone_ms.is_(None))
    return read_page(connection, query, _NEWEST_FIRST, _read, asked)


def change(
    connection: Connection, finding_id: str, *, owner: str | None = None, resolve: str | None = None
) -> FindingRow:
    """Give it an owner, or resolve it for a reason. Raises NotFound; Conflict for one that is gone."""
    held = select(table).where(table.c.finding_id == finding_id).with_for_update()
    row = connection.execute(held).one_or_none()
    if row is None:
        raise NotFound(f"There is no finding {finding_id!r}.", param="finding_id")
    if row.gone_ms is not None:
        raise Conflict("It is gone: no audit sees it any more.", param="finding_id", code="gone")
    values: dict[str, Any] = {"changed_ms": database_now_ms(connection)}
    if owner is not None:
        values |= {"owner": owner, "state": State.ACKNOWLEDGED.value}
    if resolve is not None:
        values |= {"reason": resolve, "state": State.RESOLVED.value}
    changed = update(table).where(table.c.finding_id == finding_id).values(**values).returning(table)
    return _read(connection.execute(changed).one())


def count_by_state(connection: Connection) -> dict[tuple[str, str], int]:
    """How many are there, by kind and state."""
    query = select(table.c.kind, table.c.state, func.count()).where(table.c.gone_ms.is_(None))
    return {
        (row[0], row[1]): row[2] for row in connection.execute(query.group_by(table.c.kind, table.c.state))
    }


def _about(each: Finding) -> str:
    """What tells it apart from others of its kind."""
    if each.about is not None:
        return each.about
    if each.instance is not None:
        return f"{each.instance} {each.epoch or ''}".rstrip()
    return _FIGURES.sub("#", each.message)


def _size(said: dict[str, Any]) -> Any:
    return said.get("count"), said.get("tokens")


def _read(row: Any) -> FindingRow:
    return FindingRow(
        finding=row.finding_id,
        kind=row.kind,
        said=row.said,
        state=State(row.state),
        owner=row.owner,
        reason=row.reason,
        opened_ms=row.opened_ms,
        changed_ms=row.changed_ms,
        gone_ms=row.gone_ms,
    )
