"""The balance of each engine by minute, as rows: written by audits, listed, and thinned out when they are
old. It owns the table; `balance` says what a balance is.

Counters move while a request runs, and its event comes when it has ended: what a minute has produced is not
what the events of that minute say. So a row holds sums since the epoch began, of one moment: what is produced
and on no bill yet is `open` then, and the residual is 0 at each moment, whichever minutes a request spans.
What was added in a minute is the difference to the row before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    func,
    literal_column,
    or_,
    select,
    text,
)

from billing.audit.balance import EpochBalance, Metered
from billing.moments import MINUTE_MS
from billing.page import Order, Page, PageRequest, read_page
from billing.schema.findings import engine_balance as table
from billing.wire.tokens import NO_TOKENS, CounterPair

_HOUR_MINUTES: Final = 60
# A row goes on to hold if the next reading of the same figures is not later than this.
_GAP_MINUTES: Final = 2
# After that, an hour keeps its last row of each engine, and those with another residual than the row before.
_BY_MINUTE_FOR: Final = 14 * 24 * 60
_KEPT_FOR: Final = 400 * 24 * 60
# What is older was thinned out before, unless billing was away for so long.
_THINNED_OF: Final = 7 * 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """Of an epoch when its balance was read. `run`: its last one. `counters`: `read`, `silent` or `ended`.
    `running`, `waiting`: its requests that are open, and that wait for SQL; the oldest of these for `lag_ms`.
    """

    run: int
    counters: str
    running: int = 0
    waiting: int = 0
    lag_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceRow:
    """The balance of one epoch in the minutes [minute, until]. `added`: to `produced`, `billed` and
    `absorbed` since the row before.
    """

    instance: str
    epoch: str
    minute: int
    until: int
    state: EngineState
    produced: CounterPair
    metered: Metered
    added: Mapping[str, CounterPair]

    @property
    def residual(self) -> CounterPair:
        """What nothing explains."""
        return self.produced - self.metered.total


_SUMS: Final = tuple(
    f"{what}_{kind}"
    for what in ("produced", "billed", "absorbed", "open")
    for kind in ("prompt", "generation")
)
_STATE: Final = ("run", "counters", "running", "waiting", "lag_ms")
_ADDED: Final = ("produced", "billed", "absorbed")
_NEWEST_FIRST: Final[Order[BalanceRow]] = Order(
    "reconciliation",
    lambda each: (each.minute, each.instance, each.epoch),
    (int, str, str),
    (table.c.minute, table.c.instance, table.c.epoch),
    descending=True,
)


def _residual(kind: str, of: Any = table.c) -> ColumnElement[Any]:
    difference: ColumnElement[Any] = of[f"produced_{kind}"]
    for what in ("billed", "absorbed", "open"):
        difference = difference - of[f"{what}_{kind}"]
    return difference


def _has_residual(of: Any = table.c) -> ColumnElement[bool]:
    return or_(_residual("prompt", of) != 0, _residual("generation", of) != 0)


def keep(
    connection: Connection,
    at_ms: int,
    balances: Iterable[EpochBalance],
    states: Mapping[tuple[str, str], EngineState],
) -> None:
    """Note the balances of this moment (of Redis's clock). Engines without counters have none, and of one
    that has ended nothing is noted that was there before. The caller lets nobody else do it meanwhile.
    """
    now = at_ms // MINUTE_MS
    rows = [
        row
        for balance in balances
        if balance.has_counters and (row := _values(balance, states[balance.instance, balance.epoch]))
    ]
    there = _last(connection, [(row["instance"], row["epoch"]) for row in rows])
    made, held = [], []
    for row in rows:
        last = there.get((row["instance"], row["epoch"]))
        same = last is not None and all(last[name] == row[name] for name in (*_SUMS, *_STATE))
        # The clock may have gone back.
        minute = now if last is None else max(now, last["until"])
        if same and row["counters"] == "ended":
            continue
        if (
            last is not None
            and same
            and minute - last["until"] <= _GAP_MINUTES
            and minute // _HOUR_MINUTES == last["minute"] // _HOUR_MINUTES
        ):
            held.append({name: last[name] for name in _KEY} | {"until": minute})
        else:
            made.append({**row, "minute": minute, "until": minute})
    for statement, changed in ((_HOLD_ON, held), (_ADD, made)):
        if changed:
            connection.execute(statement, {"rows": orjson.dumps(changed).decode()})


_KEY: Final = ("instance", "epoch", "minute")
_HOLD_ON: Final = text("""
update engine_balance b set until = held.until
from jsonb_populate_recordset(null::engine_balance, cast(:rows as jsonb)) held
where (b.instance, b.epoch, b.minute) = (held.instance, held.epoch, held.minute) and b.until < held.until
""")
_COLUMNS: Final = [column.name for column in table.c if column.name not in _KEY]
_ADD: Final = text(
    "insert into engine_balance "  # noqa: S608 (names of ours)
    "select * from jsonb_populate_recordset(null::engine_balance, cast(:rows as jsonb)) "
    "on conflict (instance, epoch, minute) do update "
    f"set {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)


def residual_since_ms(connection: Connection, instance: str, epoch: str) -> int | None:
    """Since when an epoch has had a residual without a break; None if its last row has none."""
    here = and_(table.c.instance == instance, table.c.epoch == epoch)
    clear = select(func.max(table.c.minute)).where(here, ~_has_residual()).scalar_subquery()
    first = select(func.min(table.c.minute)).where(here, table.c.minute > func.coalesce(clear, -1))
    minute = connection.execute(first).scalar_one()
    return None if minute is None else int(minute) * MINUTE_MS


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    instance: str | None,
    from_ms: int | None,
    until_ms: int | None,
    residual: bool,
) -> Page[BalanceRow]:
    """The newest first: of an instance, in [from, until), with a residual only."""
    before = table.alias("before")
    previous = (
        select(*(before.c[f"{what}_{kind}"] for what in _ADDED for kind in ("prompt", "generation")))
        .where(
            before.c.instance == table.c.instance, before.c.epoch == table.c.epoch,
            before.c.minute < table.c.minute,
        )
        .order_by(before.c.minute.desc())
        .limit(1)
        .lateral("previous")
    )  # fmt: skip
    query = select(table, *(column.label(f"before_{column.name}") for column in previous.c)).select_from(
        table.outerjoin(previous, literal_column("true"))
    )
    if instance is not None:
        query = query.where(table.c.instance == instance)
    if from_ms is not None:
        first = from_ms // MINUTE_MS
        # A row never passes its hour.
        query = query.where(table.c.until >= first, table.c.minute >= first // _HOUR_MINUTES * _HOUR_MINUTES)
    if until_ms is not None:
        query = query.where(table.c.minute < -(-until_ms // MINUTE_MS))
    if residual:
        query = query.where(_has_residual())
    return read_page(connection, query, _NEWEST_FIRST, lambda row: _read(row._mapping), asked)


def thin_out(connection: Connection, at_ms: int) -> int:
    """Leave of old hours what `_BY_MINUTE_FOR` says, and nothing of those that are older still. Returns how
    many rows went.
    """
    now = at_ms // MINUTE_MS
    oldest = now - _KEPT_FOR
    gone = connection.execute(table.delete().where(table.c.minute < oldest)).rowcount
    edge = (now - _BY_MINUTE_FOR) // _HOUR_MINUTES * _HOUR_MINUTES
    return gone + connection.execute(_THIN_OUT, {"begins": edge - _THINNED_OF, "edge": edge}).rowcount


_THIN_OUT: Final = text("""
with placed as (
  select instance, epoch, minute, lead(minute) over engine as next,
    (produced_prompt - billed_prompt - absorbed_prompt - open_prompt,
      produced_generation - billed_generation - absorbed_generation - open_generation) as residual,
    lag((produced_prompt - billed_prompt - absorbed_prompt - open_prompt,
      produced_generation - billed_generation - absorbed_generation - open_generation)) over engine as before
  from engine_balance where minute >= :begins and minute < :edge
  window engine as (partition by instance, epoch order by minute)
)
delete from engine_balance b using placed p
where (b.instance, b.epoch, b.minute) = (p.instance, p.epoch, p.minute)
  and p.next / 60 = p.minute / 60 and p.residual is not distinct from p.before
""")


def _values(balance: EpochBalance, state: EngineState) -> dict[str, Any] | None:
    """The columns but the minutes; None of an epoch that has ended and has nothing."""
    parts = {
        "produced": balance.produced,
        "billed": balance.metered.billed,
        "absorbed": balance.metered.absorbed,
        "open": balance.metered.open,
    }
    if state.counters == "ended" and all(pair == NO_TOKENS for pair in parts.values()):
        return None
    sums = {f"{what}_prompt": pair.prompt for what, pair in parts.items()}
    sums |= {f"{what}_generation": pair.generation for what, pair in parts.items()}
    return {"instance": balance.instance, "epoch": balance.epoch, **sums, **asdict(state)}


_LAST: Final = text("""
select last.* from unnest(cast(:instances as text[]), cast(:epochs as text[])) asked (instance, epoch)
cross join lateral (
  select * from engine_balance b where b.instance = asked.instance and b.epoch = asked.epoch
  order by minute desc limit 1
) last
""")


def _last(connection: Connection, engines: list[tuple[str, str]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    if not engines:
        return {}
    names = {"instances": [name for name, _ in engines], "epochs": [epoch for _, epoch in engines]}
    return {(row["instance"], row["epoch"]): dict(row) for row in connection.execute(_LAST, names).mappings()}


def _read(row: Mapping[Any, Any]) -> BalanceRow:
    def pair(what: str, head: str = "") -> CounterPair:
        return CounterPair(row[f"{head}{what}_prompt"] or 0, row[f"{head}{what}_generation"] or 0)

    return BalanceRow(
        instance=row["instance"],
        epoch=row["epoch"],
        minute=row["minute"],
        until=row["until"],
        state=EngineState(**{name: row[name] for name in _STATE}),
        produced=pair("produced"),
        metered=Metered(pair("billed"), pair("absorbed"), pair("open")),
        added={what: pair(what) - pair(what, "before_") for what in _ADDED},
    )
