"""Drops the usage events of old days, whole partitions at a time. It owns when a day is final, and what stays
of it: entries of the ledger, sums by hour, chains, invoices, and two digests of each event, so that its chain
can still be worked out from the start.

Requests at providers stay as they are: what they cost may get a price later. A day that was dropped and has
only those is done.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sqlalchemy import Connection, Engine, TextClause, insert, select, text

from billing.catalogue.price_book import prices_by_id
from billing.ledger.chain import ENTRY_COLUMNS, PriceDigests, read_entries, stored_entry
from billing.ledger.chain_entry import entry, link
from billing.ledger.event_days import make, partition
from billing.moments import DAY_MS, HOUR_MS
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
_LOOKED_AT_A_ROUND: Final = 60
# Recording waits for the moment in which a partition is taken away; that moment must not wait long.
_LOCK_TIMEOUT: Final = "2s"

_PARTITIONS: Final = text("""
    select substr(c.relname, 14)::int as day, greatest(c.reltuples, 0)::bigint as events,
      exists (select from dropped_day d where d.day = substr(c.relname, 14)::int) as dropped
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'usage_event'::regclass and c.relname ~ '^usage_event_d[1-9][0-9]*$' order by 1
""")
# Of a day that was dropped before. The index is `_INDEX`.
_COMES_TO_NOTHING: Final = """
    select exists (select from {partition}) and not exists (select from {partition} where provider is null)
"""
# What comes late for a day whose requests at providers were kept, and nothing else.
_INDEX: Final = "create index on {partition} (day) where provider is null"
# By chain: how far the entries of the day reach, and what is open of them.
_STATE: Final = """
    select coalesce(c.chain, '') as chain, count(*) filter (where c.position is null) as unchained,
      max(c.position) as upto, max(t.transaction_id) as newest,
      count(*) filter (where t.pricing = 'unpriced' and not exists (
        select from ledger_transaction r where r.corrects = t.transaction_id)) as no_amount,
      count(*) filter (where t.pricing = 'quarantined') as in_doubt
    from {partition} e join ledger_transaction t using (request_id, day)
    left join usage_chain c on c.transaction_id = t.transaction_id
    group by 1 order by 1
"""
# A person has said why, of as many as there are now.
_DOUBT_RESOLVED: Final = text("""
    select exists (
      select from finding where kind = 'quarantined' and state = 'resolved' and gone_ms is null
        and said ->> 'count' = (
          select count(*)::text from ledger_transaction where pricing = 'quarantined'))
""")
# What their engine counted beyond what is recorded may be theirs, and is absorbed with them as evidence.
# After so many days that is open only where a residual is, or where an engine that does not count its
# requests still runs and may have had no idle moment. Many never get a row: nobody can say what those had
# produced whose engine died, and there is nothing to absorb.
_NOT_RECONCILED: Final = """
    select count(*) from {partition} e
    where kind = 'request' and provider is null
      and (ending = 'gateway_died' or usage_source in ('checkpoint', 'counted', 'unread'))
      and not exists (select from reconciled_request r where r.request_id = e.request_id)
      and (
        exists (select from finding f where f.kind = 'residual' and f.about = e.instance || ' ' || e.epoch
          and f.gone_ms is null and f.state <> 'resolved')
        or exists (select from engine_counter c where c.instance = e.instance and c.epoch = e.epoch
          and c.state = 'open' and c.requests is null))
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
_BOOKS_OPEN: Final = "the books of its month are not closed, or came before late usage"


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
    """The days that are older than so many, each with what keeps it: the `most` oldest that are kept, and the
    `most` oldest that may be dropped. Only the oldest four times `most` are looked at.
    """
    found: list[Day] = []
    left = {True: most, False: most}
    for day, events in _overdue(connection, days_kept)[: 4 * most]:
        reasons = _reasons(connection, day)
        blocked = tuple(dict.fromkeys(reasons if left[True] else islice(reasons, 1)))
        if left[bool(blocked)]:
            left[bool(blocked)] -= 1
            found.append(Day(day, events, blocked))
        if not left[False]:
            break
    return found


def _overdue(connection: Connection, days_kept: int) -> list[tuple[int, int]]:
    """The days that are older than so many and have something to drop, with about how many events; the
    oldest first.
    """
    last = database_now_ms(connection) // DAY_MS - days_kept - 1
    return [
        (row.day, row.events)
        for row in connection.execute(_PARTITIONS).all()
        if row.day <= last and not (row.dropped and _comes_to_nothing(connection, row.day))
    ]


def _comes_to_nothing(connection: Connection, day: int) -> bool:
    """Whether a day that was dropped has only what is kept."""
    return bool(connection.execute(_of(day, _COMES_TO_NOTHING)).scalar_one())


def oldest_ms(connection: Connection) -> int | None:
    """When the oldest day that is there began."""
    row = connection.execute(_PARTITIONS).first()
    return None if row is None else int(row.day) * DAY_MS


def dropped(connection: Connection, *, most: int) -> list[Dropped]:
    """What was dropped, the newest first."""
    of = dropped_day.c
    query = select(of.day, of.events, of.kept, of.dropped_ms).order_by(of.dropped_id.desc()).limit(most)
    return [Dropped(*row) for row in connection.execute(query)]


def _reasons(connection: Connection, day: int) -> Iterator[str]:
    """Why a day is not final, in words; first what is seen without reading the day."""
    ends_ms = (day + 1) * DAY_MS
    books = connection.execute(_BOOKS).one_or_none()
    if books is None or books.until_ms < ends_ms:
        yield _BOOKS_OPEN
    resolved = connection.execute(_DOUBT_RESOLVED).scalar_one()
    if open_ := connection.execute(_of(day, _NOT_RECONCILED)).scalar_one():
        yield f"{open_} requests without a final count are not reconciled"
    for row in connection.execute(_of(day, _STATE)).all():
        whose = row.chain or "no tenant"
        beyond = connection.execute(_BEYOND, {"chain": row.chain, "upto": row.upto or 0}).one()
        if row.unchained or (row.upto or 0) > beyond.signed:
            yield f"{whose}: its usage checkpoint is not signed"
        if row.no_amount:
            yield f"{whose}: {row.no_amount} requests have no amount"
        if row.in_doubt and not resolved:
            yield f"{whose}: usage of {row.in_doubt} requests is in doubt, and its finding is not resolved"
        if beyond.kind == "external" or beyond.invoiced_ms is not None:
            if (beyond.invoiced_ms or 0) < ends_ms:
                yield f"{whose}: no invoice covers it"
            elif row.newest > beyond.invoiced_upto:
                yield f"{whose}: late usage is on no invoice yet"
        if books is not None and row.newest > books.ledger_upto:
            yield _BOOKS_OPEN
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
    """Drop the oldest days that are due and final, some at a time. Returns how many are due still. Raises
    SQLAlchemyError.
    """
    with engine.connect() as connection:
        days = [day for day, _ in _overdue(connection, days_kept)]
        turn = database_now_ms(connection) // HOUR_MS * _LOOKED_AT_A_ROUND
    # To know what keeps a day, it is read: where many are kept, each is looked at in its turn.
    first = turn % len(days) if len(days) > _LOOKED_AT_A_ROUND else 0
    done = 0
    for day in (days[first:] + days[:first])[:_LOOKED_AT_A_ROUND]:
        if done == _DAYS_A_ROUND:
            break
        with engine.connect() as connection:
            if any(_reasons(connection, day)):
                continue
        try:
            drop(engine, day)
        except Conflict as exc:
            _log.error("usage events of day %d are not dropped. %s", day, exc.message)
        else:
            done += 1
    return len(days) - done


def refuse(connection: Connection, day: int) -> None:
    """Raises Conflict unless there are events of this day, it is final, and old enough."""
    there = [row for row in connection.execute(_PARTITIONS).all() if row.day == day]
    if not there:
        raise Conflict("There are no usage events of this day.", param="day", code="already_dropped")
    if there[0].dropped and _comes_to_nothing(connection, day):
        raise Conflict(
            "It is dropped: only requests at providers are left.", param="day", code="already_dropped"
        )
    if day >= database_now_ms(connection) // DAY_MS - DAYS_LEAST:
        raise Conflict(f"It is kept: {DAYS_LEAST} days are, in any case.", param="day", code="not_final")
    if blocked := dict.fromkeys(_reasons(connection, day)):
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
        connection.execute(_of(day, _INDEX))
    return Dropped(day, counts.events, counts.kept, made.dropped_ms)
