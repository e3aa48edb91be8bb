"""Reclaims in SQL: rows in and out, and the append-only history. It decides nothing; each function works in
the caller's transaction.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, Select, exists, insert, or_, select, update

from billing.catalogue import outbox
from billing.catalogue.names import new_id
from billing.catalogue.outbox import ChangeKind
from billing.contracts.position import Taken
from billing.contracts.timeline import FOREVER_MS
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import NotFound
from billing.schema.capacity import reclaim as table
from billing.schema.capacity import reclaim_history

Use = Literal["external", "internal", "research", "recsys", "idle"]
State = Literal["planned", "draining", "done", "released", "cancelled"]

RECLAIM_PREFIX: Final = "rcl_"
# States of reclaims that take machines, now or later.
TAKING: Final[tuple[State, ...]] = ("planned", "draining", "done")
# States in which the chosen instances are away.
AWAY: Final[tuple[State, ...]] = ("draining", "done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """`instances` machines of a pool for another use, from `by_ms` until they are released. `chosen` is empty
    until they drain, and shorter than `instances` if some machines ran nothing.
    """

    reclaim_id: str
    pool: str
    instances: int
    use: Use
    state: State
    breaks: bool
    chosen: tuple[str, ...]
    by_ms: int
    released_ms: int | None
    created_ms: int

    @property
    def taken(self) -> Taken:
        """As a pool's position counts it."""
        return Taken(self.instances, self.by_ms, FOREVER_MS if self.released_ms is None else self.released_ms)


# A change that the last version recorded under another name.
_EARLIER_CHANGES: Final = {"asked_to_give_way": "preempted"}
_BY_DEADLINE: Final[Order[Reclaim]] = Order(
    "reclaims",
    lambda reclaim: (reclaim.by_ms, reclaim.reclaim_id),
    (int, str),
    (table.c.by_ms, table.c.reclaim_id),
)


@dataclass(frozen=True, slots=True)
class ReclaimEvent:
    """One entry of a reclaim's history."""

    at_ms: int
    change: str
    detail: Mapping[str, Any]


def add(
    connection: Connection, pool: str, instances: int, use: Use, by_ms: int, *, breaks: bool, now_ms: int
) -> Reclaim:
    """Add a reclaim, as planned; its history begins with its order."""
    made = Reclaim(
        reclaim_id=new_id(RECLAIM_PREFIX),
        pool=pool,
        instances=instances,
        use=use,
        state="planned",
        breaks=breaks,
        chosen=(),
        by_ms=by_ms,
        released_ms=None,
        created_ms=now_ms,
    )
    connection.execute(insert(table).values(_columns(made)))
    return made


def move(
    connection: Connection,
    before: Reclaim,
    state: State,
    detail: Mapping[str, Any],
    *,
    now_ms: int,
    **fields: Any,
) -> Reclaim:
    """Change the state of the reclaim, with an entry in its history. Redis gets which instances are away and
    which are back.
    """
    after = replace(before, state=state, **fields)
    connection.execute(update(table).where(table.c.reclaim_id == before.reclaim_id).values(_columns(after)))
    append(connection, before.reclaim_id, state, detail, now_ms=now_ms)
    if (before.state in AWAY) != (state in AWAY):
        for instance in after.chosen:
            outbox.record(connection, ChangeKind.DRAIN, instance)
    return after


def append(
    connection: Connection, reclaim_id: str, change: str, detail: Mapping[str, Any], *, now_ms: int
) -> None:
    """Add an entry to the history."""
    connection.execute(
        insert(reclaim_history).values(
            reclaim_id=reclaim_id, change=change, detail=dict(detail), at_ms=now_ms
        )
    )


def find(connection: Connection, reclaim_id: str) -> Reclaim:
    """By id. Raises NotFound."""
    row = connection.execute(select(table).where(table.c.reclaim_id == reclaim_id)).one_or_none()
    if row is None:
        message = f"There is no reclaim {reclaim_id!r}; `taas reclaim` shows those that are."
        raise NotFound(message, param="reclaim")
    return _reclaim(row)


def lock(connection: Connection, reclaim_id: str) -> Reclaim:
    """Like `find`, and locked until the transaction ends."""
    connection.execute(select(table.c.reclaim_id).where(table.c.reclaim_id == reclaim_id).with_for_update())
    return find(connection, reclaim_id)


def list_all(
    connection: Connection,
    *,
    pool: str | None = None,
    states: Collection[State] = (),
    breaks: bool | None = None,
) -> list[Reclaim]:
    """Those that match all that is given, by deadline."""
    query = select(table).order_by(*_BY_DEADLINE.columns)
    if pool is not None:
        query = query.where(table.c.pool == pool)
    if states:
        query = query.where(table.c.state.in_(states))
    if breaks is not None:
        query = query.where(table.c.breaks.is_(breaks))
    return [_reclaim(row) for row in connection.execute(query)]


def list_page(
    connection: Connection, asked: PageRequest, *, pool: str | None = None, state: State | None = None
) -> Page[Reclaim]:
    """By deadline; of a pool, in a state."""
    query = select(table)
    if pool is not None:
        query = query.where(table.c.pool == pool)
    if state is not None:
        query = query.where(table.c.state == state)
    return read_page(connection, query, _BY_DEADLINE, _reclaim, asked)


def select_any_open() -> Select[bool]:
    """Whether there is a reclaim that takes machines, now or later."""
    return select(
        exists(select(table.c.reclaim_id).where(or_(*(table.c.state == state for state in TAKING))))
    )


def history(connection: Connection, reclaim_id: str) -> list[ReclaimEvent]:
    """The entries of a reclaim, oldest first."""
    query = select(reclaim_history).where(reclaim_history.c.reclaim_id == reclaim_id)
    rows = connection.execute(query.order_by(reclaim_history.c.entry))
    return [ReclaimEvent(row.at_ms, _EARLIER_CHANGES.get(row.change, row.change), row.detail) for row in rows]


def away(connection: Connection) -> frozenset[str]:
    """Instances that reclaims have: draining or gone."""
    return frozenset(instance for each in list_all(connection, states=AWAY) for instance in each.chosen)


def _columns(reclaim: Reclaim) -> dict[str, Any]:
    return {**asdict(reclaim), "chosen": list(reclaim.chosen)}


def _reclaim(row: Row[Any]) -> Reclaim:
    return Reclaim(**{**row._mapping, "chosen": tuple(row.chosen)})
