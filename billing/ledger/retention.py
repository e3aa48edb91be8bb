"""Drops the usage events of old days, whole partitions at a time. It owns when a day is final, and what stays
of it: entries of the ledger, sums by hour, chains, invoices, and two digests of each event, so that its chain
can still be worked out from the start.

Requests at providers stay as they are: what they cost may get a price later.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, TextClause, insert, select, text

from billing.catalogue.price_book import prices_by_id
from billing.ledger.chain import ENTRY_COLUMNS, PriceDigests, read_entries, stored_entry
from billing.ledger.chain_entry import entry, link
from billing.ledger.event_days import make, partition
from billing.moments import DAY_MS
from billing.refusals import Conflict
from billing.schema.chain import usage_chain
from billing.schema.clock import database_now_ms
from billing.schema.ledger import TOTAL_COLUMNS, ledger_transaction
from billing.schema.retention import dropped_day, dropped_total

_log = logging.getLogger(__name__)

# What reads single events (audits of engines, limits of a day, batches) looks back this far at most.
DAYS_LEAST: Final = 35
_ENTRIES_AT_ONCE: Final = 1000
_DAYS_A_ROUND: Final = 5
# Recording waits for the moment in which a partition is taken away; that moment must not wait long.
_LOCK_TIMEOUT: Final = "2s"

_PARTITIONS: Final = text("""
    select substr(c.relname, 14)::int as day, greatest(c.reltuples, 0)::bigint as events
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'usage_event'::regclass and c.relname ~ '^usage_event_d[1-9][0-9]*$' order by 1
""")
# By chain: how far the entries of the day reach, and what is open of them.
_STATE: Final = """
    select coalesce(c.chain, '') as chain, count(*) filter (where c.position is null) as unchained,
      max(c.position) as upto, max(t.transaction_id) as newest,
      count(*) filter (where t.pricing in ('unpriced', 'quarantined') and not exists (
        select from ledger_transaction r where r.corrects = t.transaction_id)) as no_amount
    from {partition} e join ledger_transaction t using (request_id, day)
    left join usage_chain c on c.transaction_id = t.transaction_id
    group by 1 order by 1
"""
_NOT_RECONCILED: Final = """
    select count(*) from {partition} e
    where kind = 'request'
      and (ending = 'gateway_died' or usage_source in ('checkpoint', 'counted', 'unread'))
      and not exists (select from reconciled_request r where r.request_id = e.request_id)
"""
_IDS: Final = "select request_id from {partition} where provider is null"
_UNPROVEN: Final = """
    select count(*) from {partition} e join ledger_transaction t using (request_id, day)
    where e.provider is null
      and not exists (select from dropped_event d where d.transaction_id = t.transaction_id)
"""
_COUNTS: Final = """
    select count(*) filter (where provider is null) as events,
      count(*) filter (where provider is not null) as kept from {partition}
"""
_TOTALS: Final = f"""
    insert into {dropped_total.name} (dropped_id, instance, epoch, {", ".join(TOTAL_COLUMNS)})
    select :dropped_id, instance, epoch, {", ".join(f"sum({name})" for name in TOTAL_COLUMNS)}
    from {{partition}} where provider is null group by instance, epoch
"""  # noqa: S608 (names of our own)
_KEEP: Final = """
    create temporary table kept on commit drop as select * from {partition} where provider is not null
"""
_BEYOND: Final = text("""
    select coalesce((select max(position) from usage_checkpoint
        where chain = :chain and signature is not null), 0) as signed,
      (select kind from tenant where tenant_id = :chain) as kind,
      (select until_ms from invoiced where tenant_id = :chain) as invoiced_ms,
      (select ledger_upto from invoiced where tenant_id = :chain) as invoiced_upto,
      array(select s.sink_id from sink s
        left join sink_position p on p.sink_id = s.sink_id and p.chain = :chain
        where (s.tenant_id is null or s.tenant_id = :chain) and :chain <> ''
          and coalesce(p.position, 0) < :upto order by 1) as sinks
""")
_BOOKS: Final = text("select until_ms, ledger_upto from books order by until_ms desc limit 1")


@dataclass(frozen=True, slots=True)
class Day:
    """A day whose events are there: about how many, and why it is not dropped; nothing if it may be."""

    day: int
    events: int
    blocked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A day that was dropped. `kept`: requests at providers."""

    day: int
    events: int
    kept: int
    dropped_ms: int


def due(connection: Connection, days_kept: int, *, most: int) -> list[Day]:
    """The days that are older than so many, the `most` oldest first, each with what keeps it."""
    last = database_now_ms(connection) // DAY_MS - days_kept - 1
    rows = [row for row in connection.execute(_PARTITIONS).all() if row.day <= last][:most]
    return [Day(row.day, row.events, _blocked(connection, row.day)) for row in rows]


def oldest_ms(connection: Connection) -> int | None:
    """When the oldest day that is there began."""
    row = connection.execute(_PARTITIONS).first()
    return None if row is None else int(row.day) * DAY_MS


def dropped(connection: Connection, *, most: int) -> list[Dropped]:
    """What was dropped, the newest first."""
    of = dropped_day.c
    query = select(of.day, of.events, of.kept, of.dropped_ms).order_by(of.dropped_id.desc()).limit(most)
    return [Dropped(*row) for row in connection.execute(query)]


def _blocked(connection: Connection, day: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_reasons(connection, day)))


def _reasons(connection: Connection, day: int) -> Iterator[str]:
    """Why a day is not final, in words."""
    ends_ms = (day + 1) * DAY_MS
    books = connection.execute(_BOOKS).one_or_none()
    if open_ := connection.execute(_of(day, _NOT_RECONCILED)).scalar_one():
        yield f"{open_} requests without a final count are not reconciled"
    for row in connection.execute(_of(day, _STATE)).all():
        whose = row.chain or "no tenant"
        beyond = connection.execute(_BEYOND, {"chain": row.chain, "upto": row.upto or 0}).one()
        if row.unchained or (row.upto or 0) > beyond.signed:
            yield f"{whose}: its usage checkpoint is not signed"
        if row.no_amount:
            yield f"{whose}: {row.no_amount} requests have no amount"
        if beyond.kind == "external" or beyond.invoiced_ms is not None:
            if (beyond.invoiced_ms or 0) < ends_ms:
                yield f"{whose}: no invoice covers it"
            elif row.newest > beyond.invoiced_upto:
                yield f"{whose}: late usage is on no invoice yet"
        if books is None or books.until_ms < ends_ms or row.newest > books.ledger_upto:
            yield "the books of its month are not closed, or came before late usage"
        for sink in beyond.sinks:
            yield f"{whose}: sink {sink} has not taken it"


def _of(day: int, statement: str) -> TextClause:
    return text(statement.replace("{partition}", partition(day)))


def drop(engine: Engine, day: int) -> Dropped:
    """Drop a day's events. Raises what `refuse`, `prove` and `take_away` do."""
    with engine.connect() as connection:
        refuse(connection, day)
    prove(engine, day)
    with engine.begin() as connection:
        return take_away(connection, day)


def drop_due(engine: Engine, days_kept: int) -> int:
    """Drop what is due and final of the oldest days that are due, some at a time. Returns how many are due
    still. Raises SQLAlchemyError.
    """
    with engine.connect() as connection:
        days = due(connection, days_kept, most=_DAYS_A_ROUND)
    for each in days:
        if not each.blocked:
            try:
                drop(engine, each.day)
            except Conflict as exc:
                _log.error("usage events of day %d are not dropped. %s", each.day, exc.message)
    with engine.connect() as connection:
        last = database_now_ms(connection) // DAY_MS - days_kept - 1
        return sum(row.day <= last for row in connection.execute(_PARTITIONS))


def refuse(connection: Connection, day: int) -> None:
    """Raises Conflict unless there are events of this day, it is final, and old enough."""
    if all(row.day != day for row in connection.execute(_PARTITIONS)):
        raise Conflict("There are no usage events of this day.", param="day", code="already_dropped")
    if day >= database_now_ms(connection) // DAY_MS - DAYS_LEAST:
        raise Conflict(f"It is kept: {DAYS_LEAST} days are, in any case.", param="day", code="not_final")
    if blocked := _blocked(connection, day):
        raise Conflict(f"It is kept: {'; '.join(blocked)}.", param="day", code="not_final")


def prove(engine: Engine, day: int) -> None:
    """Write what proves a day's events, some at a time, if each is as it was chained. Again changes nothing.
    Raises Conflict for an event that is not.
    """
    with engine.connect() as connection:
        ids = connection.execute(_of(day, _IDS)).scalars().all()
    for start in range(0, len(ids), _ENTRIES_AT_ONCE):
        with engine.begin() as connection:
            _prove(connection, day, ids[start : start + _ENTRIES_AT_ONCE])


def _prove(connection: Connection, day: int, ids: Sequence[str]) -> None:
    of = usage_chain.c
    before = usage_chain.alias("before")
    query = (
        select(of.chain, of.position, of.chained_ms, of.hash, before.c.hash.label("previous"), *ENTRY_COLUMNS)
        .select_from(
            ledger_transaction.join(
                usage_chain, of.transaction_id == ledger_transaction.c.transaction_id
            ).outerjoin(before, (before.c.chain == of.chain) & (before.c.position == of.position - 1))
        )
        .where(ledger_transaction.c.day == day, ledger_transaction.c.request_id.in_(ids))
    )
    rows = read_entries(connection, query)
    prices = prices_by_id(connection, sorted({row["price_id"] for row in rows} - {None}))
    digests = PriceDigests()
    proofs = []
    for row in rows:
        item = stored_entry(row, digests.of(prices.get(row["price_id"])))
        place = {"chain": row["chain"], "position": row["position"], "chained_ms": row["chained_ms"]}
        previous = bytes(32) if row["previous"] is None else row["previous"]
        if link(previous.hex(), entry({**place, **item.facts}, item.parts)) != row["hash"].hex():
            raise Conflict(
                f"It is kept: request {row['of_request']} is not as it was chained.", code="not_final"
            )
        proofs.append({
            "transaction_id": row["transaction_id"], "event": bytes.fromhex(item.parts.event),
            "internal": bytes.fromhex(item.parts.internal),
        })  # fmt: skip
    if proofs:
        connection.execute(_ADD_PROOF, proofs)


_ADD_PROOF: Final = text(
    "insert into dropped_event values (:transaction_id, :event, :internal) on conflict do nothing"
)


def take_away(connection: Connection, day: int) -> Dropped:
    """Take a day's partition away, all of whose events are proved. Raises Conflict if something came since;
    DBAPIError if readers do not let go of it in time: it may be called again.
    """
    connection.execute(text(f"set local lock_timeout = '{_LOCK_TIMEOUT}'"))
    # Nothing is added to it from here on.
    connection.execute(_of(day, "lock table {partition} in share mode"))
    refuse(connection, day)
    if connection.execute(_of(day, _UNPROVEN)).scalar_one():
        raise Conflict("It is kept: usage came meanwhile.", code="not_final")
    counts = connection.execute(_of(day, _COUNTS)).one()
    values = {"day": day, "events": counts.events, "kept": counts.kept}
    made = connection.execute(insert(dropped_day).values(values).returning(dropped_day)).one()
    connection.execute(_of(day, _TOTALS), {"dropped_id": made.dropped_id})
    if counts.kept:
        connection.execute(_of(day, _KEEP))
    connection.execute(_of(day, "alter table usage_event detach partition {partition}"))
    connection.execute(_of(day, "drop table {partition}"))
    if counts.kept:
        make(connection, day)
        connection.execute(_of(day, "insert into {partition} select * from kept"))
    return Dropped(day, counts.events, counts.kept, made.dropped_ms)
