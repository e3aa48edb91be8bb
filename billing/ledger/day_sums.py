"""Adds up the hours of days that are over. Usage that comes for such a day later is in its hours at once, and
the day is read from them until it is added up anew.
"""

from typing import Final

from sqlalchemy import Connection, Engine, func, insert, literal, select, text, update

from billing.schema.ledger import USAGE_SUMS, summed_day, usage_day, usage_hour

# As far back as days have a partition of their own. Older ones are read from their hours.
_DAYS_BACK: Final = 400
# Days of a round, of which each is a transaction.
_AT_ONCE: Final = 100
_NAMES: Final = tuple(str(column.name) for column in usage_day.primary_key.columns if column.name != "day")

# Noted days to which nobody can be adding unseen: whoever did not see the note had begun before `after_xid`,
# and has ended when no such transaction runs.
_READY: Final = text("not whole and after_xid <= pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
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
        query = select(summed_day.c.day).where(_READY).order_by(summed_day.c.day).limit(_AT_ONCE)
        ready = connection.execute(query).scalars().all()
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
    """Put the sums of the day in place. False, and nothing is done, if it is not ready, as when somebody has
    added to it since it was noted.
    """
    noted = update(summed_day).where(summed_day.c.day == day, _READY).values(whole=True)
    if not connection.execute(noted).rowcount:
        return False
    connection.execute(usage_day.delete().where(usage_day.c.day == day))
    of = usage_hour.c
    names = [of[name] for name in _NAMES]
    hours = select(literal(day), *names, *(func.sum(of[name]) for name in USAGE_SUMS))
    hours = hours.where(of.hour >= day * 24, of.hour < (day + 1) * 24).group_by(*names)
    connection.execute(insert(usage_day).from_select(["day", *_NAMES, *USAGE_SUMS], hours))
    return True
