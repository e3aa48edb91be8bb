"""The partitions of usage events: one for each day (UTC) in which requests ended. It owns which day an event
belongs to, how a partition is made, and how queries name days, so that they read no others.

Day 0 holds what has no day: events from before there were partitions, those that an earlier version records,
and those whose time cannot be right.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    and_,
    select,
    text,
)

from billing.moments import DAY_MS
from billing.schema.any_of import any_of
from billing.schema.ledger import NO_DAY, ledger_transaction, usage_event

# Events of other days than these are of no day: late ones, and those of a clock that is wrong, must not make
# a table each.
_DAYS_BACK: Final = 400
_DAYS_AHEAD: Final = 1
# So many days have their partition before they begin.
_MADE_AHEAD: Final = 3

# That it reads the table keeps partitions from being taken away until the transaction ends.
_LOOK: Final = text("""
    select floor(extract(epoch from clock_timestamp()) / 86400)::int as today,
      array(select day from unnest(cast(:days as int[])) day
        where to_regclass('usage_event_d' || day) is null) as missing,
      exists (select from only usage_event) as held
""")


def days_of(connection: Connection, ended_ms: Iterable[int]) -> dict[int, int]:
    """The day of each of these moments, as days since 1970. Each has its partition from then on."""
    moments = set(ended_ms)
    days = sorted({moment // DAY_MS for moment in moments})
    row = connection.execute(_LOOK, {"days": [day for day in days if 0 < day < 2**31]}).one()
    first, last = row.today - _DAYS_BACK, row.today + _DAYS_AHEAD
    for day in row.missing:
        if first <= day <= last:
            make(connection, day)
    return {moment: day if first <= (day := moment // DAY_MS) <= last else NO_DAY for moment in moments}


def make_ahead(connection: Connection) -> None:
    """Make the partitions of today and of the next days."""
    today = connection.execute(_LOOK, {"days": []}).one().today
    row = connection.execute(_LOOK, {"days": list(range(today, today + _MADE_AHEAD + 1))}).one()
    for day in row.missing:
        make(connection, day)


def make(connection: Connection, day: int) -> None:
    """Make a day's partition, without waiting for those who read or record, as `create table … partition of`
    would.
    """
    connection.execute(text("lock table usage_event in share update exclusive mode"))
    name = partition(day)
    if connection.execute(text("select to_regclass(:name)"), {"name": name}).scalar_one() is not None:
        return
    for statement in (
        f"create table {name} (like usage_event including defaults including constraints including indexes)",
        f"create trigger {name}_append_only before update or delete or truncate on {name} "
        "for each statement execute function refuse_change()",
        f"alter table usage_event attach partition {name} for values from ({day}) to ({day + 1})",
    ):
        connection.execute(text(statement))


def partition(day: int) -> str:
    """The table of a day."""
    return f"usage_event_d{day}"


def recorded(connection: Connection, request_ids: Collection[str]) -> dict[str, int]:
    """Those of these requests that the ledger has, with the days of their events."""
    if not request_ids:
        return {}
    of = ledger_transaction.c
    # The index leaves out what is of no request.
    query = select(of.request_id, of.day).where(
        of.request_id == any_of(request_ids), of.request_id.is_not(None), of.corrects.is_(None)
    )
    return {row.request_id: row.day for row in connection.execute(query)}


def are_those(days: Mapping[str, int]) -> ColumnElement[bool]:
    """That an event is of one of these requests, as `recorded` found them."""
    some = any_of(sorted(set(days.values())), Integer())
    return and_(usage_event.c.day == some, usage_event.c.request_id == any_of(days))
