"""Adds up the hours of days that are over. Usage that comes for such a day later is in its hours at once, and
the day is read from them until it is added up anew.
"""

from typing import Final

from sqlalchemy import Connection, Engine, func, insert, literal, select, text, update

from billing.schema.ledger import summed_day, usage_day, usage_hour

# Older days are read from their hours: they have few.
_DAYS_BACK: Final = 400
# Days of a round, of which each is a transaction.
_AT_ONCE: Final = 100
_KEY: Final = tuple(column.name for column in usage_day.primary_key.columns)
_SUMS: Final = tuple(column.name for column in usage_day.columns if column.name not in _KEY)

# Whoever adds to a day's hours without having seen its note had begun before `after_xid`, and has ended when
# no such transaction runs.
_READY: Final = text("""
    select day from summed_day
    where not whole and after_xid <= pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    order by day limit :most
""")
_SEEN: Final = text("""
    update summed_day set after_xid = pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    where after_xid is null
""")
_NOTE: Final = text("""
    insert into summed_day (day, whole)
    select day, false
    from (select floor(extract(epoch from clock_timestamp()) / 86400)::int as today) now,
      generate_series(greatest(today - :back, (select min(hour) / 24 from usage_hour)), today - 1) day
    where exists (select from usage_hour)
    on conflict (day) do nothing
""")


def round_of_days(engine: Engine) -> int:
    """Add up days that were noted in an earlier round and that nobody added to since, and note those that are
    over and not added up. Returns how many were added up.
    """
    with engine.connect() as connection:
        ready = connection.execute(_READY, {"most": _AT_ONCE}).scalars().all()
    done = 0
    for day in ready:
        with engine.begin() as connection:
            done += add_up(connection, day)
    with engine.begin() as connection:
        note(connection)
    # What began after the note was committed sees it.
    with engine.begin() as connection:
        connection.execute(_SEEN)
    return done


def note(connection: Connection) -> None:
    """Note days that are over. Whoever adds to one of them from now on takes the note away."""
    connection.execute(_NOTE, {"back": _DAYS_BACK})


def add_up(connection: Connection, day: int) -> bool:
    """Put the sums of the day in place. False, and nothing is done, if somebody has added to it since it was
    noted.
    """
    still = connection.execute(
        update(summed_day).where(summed_day.c.day == day, ~summed_day.c.whole).values(whole=True)
    )
    if not still.rowcount:
        return False
    of = usage_hour.c
    connection.execute(usage_day.delete().where(usage_day.c.day == day))
    names = [of[name] for name in _KEY if name != "day"]
    sums = [func.sum(of[name]) for name in _SUMS]
    hours = select(literal(day), *names, *sums)
    hours = hours.where(of.hour >= day * 24, of.hour < (day + 1) * 24).group_by(*names)
    columns = ["day", *(column.name for column in names), *_SUMS]
    connection.execute(insert(usage_day).from_select(columns, hours))
    return True
