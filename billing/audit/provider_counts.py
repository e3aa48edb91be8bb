"""What providers say that their accounts have used, held against what was recorded, by day and model. It owns
the table of their figures; reading their exports is for `taas reconcile provider`.

A provider has no counters that could be read. Its own report of usage is what it bills by, and the only thing
there is to compare with. A day is compared once it is over.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, insert, select

from billing.findings import Finding, FindingKind
from billing.ledger.provider_usage import Period, provider_usage
from billing.moments import day_of
from billing.schema.clock import database_now_ms
from billing.schema.findings import provider_count as table
from billing.wire.engine_kinds import without_snapshot

# What is compared, by the names of their figures.
_KINDS: Final = {"input": "prompt", "cached input": "cached", "cache write": "written", "output": "output"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a provider counted of a model on a day. `written` None: it does not say."""

    day: str
    model: str
    prompt: int
    cached: int
    written: int | None
    output: int


@dataclass(frozen=True, slots=True)
class Account:
    """Of a provider: the instances that use it; none: all of its kind."""

    provider: str
    instances: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """As the table has them."""
        return ",".join(sorted(self.instances))


def take(connection: Connection, account: Account, days: Collection[str], counted: Iterable[Counted]) -> None:
    """Keep an export; it takes the place of what was said of these days before."""
    place = {"provider": account.provider, "instances": account.key}
    here = and_(table.c.provider == account.provider, table.c.instances == account.key)
    connection.execute(delete(table).where(here, table.c.day.in_(sorted(days))))
    nothing = {"model": "", "prompt": 0, "cached": 0, "written": None, "output": 0}
    rows = [{**place, "day": day, **nothing} for day in sorted(days)]
    rows += [{**place, **asdict(each)} for each in counted]
    connection.execute(insert(table), rows)


def compare(
    connection: Connection, account: Account, days: Collection[str], counted: Iterable[Counted]
) -> list[dict[str, Any]]:
    """A row for each day, model and kind of tokens. `difference`: what the provider counted beyond what is
    billed and absorbed; `untold` requests, of which it told no usage, are in neither.
    """
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    theirs = {(each.day, each.model): each for each in counted if each.model}
    for line in provider_usage(connection, account.provider, _period(days), account.instances):
        if line["day"] in days:
            lines.setdefault((line["day"], without_snapshot(line["model"])), []).append(line)
    rows = []
    for day, model in sorted({*lines, *theirs}):
        mine = lines.get((day, model), [])
        said = theirs.get((day, model))
        for kind, name in _KINDS.items():
            there = 0 if said is None else getattr(said, name)
            billed, absorbed = (sum(line[part][name] for line in mine) for part in ("billed", "absorbed"))
            if there is None or not (there or billed or absorbed):
                continue
            rows.append({
                "day": day, "model": model, "kind": kind, "billed": billed, "absorbed": absorbed,
                "theirs": there, "difference": there - billed - absorbed,
                "untold": sum(line["untold"] for line in mine),
            })  # fmt: skip
    return rows


def check(connection: Connection, only: tuple[Account, Collection[str]] | None = None) -> list[Finding]:
    """A finding for each day that is over, account and model of which a provider has another figure; of all
    that is kept, or of these days of an account.
    """
    kept = select(table).where(table.c.day < day_of(database_now_ms(connection)))
    if only is not None:
        asked, days = only
        here = and_(table.c.provider == asked.provider, table.c.instances == asked.key)
        kept = kept.where(here, table.c.day.in_(sorted(days)))
    accounts: dict[Account, list[Counted]] = {}
    for row in connection.execute(kept.order_by(table.c.provider, table.c.instances)):
        account = Account(row.provider, tuple(row.instances.split(",")) if row.instances else ())
        said = Counted(
            day=row.day, model=row.model, prompt=row.prompt, cached=row.cached, written=row.written,
            output=row.output,
        )  # fmt: skip
        accounts.setdefault(account, []).append(said)
    return [
        finding
        for account, counted in accounts.items()
        for finding in _findings(
            account, compare(connection, account, {each.day for each in counted}, counted)
        )
    ]


def is_about(about: str, account: Account, days: Collection[str]) -> bool:
    """Whether a finding is about one of these days of the account."""
    return any(about.startswith(f"{_name(account)} {day} ") for day in days)


def _name(account: Account) -> str:
    return f"{account.provider} {account.key or 'all'}"


def _findings(account: Account, rows: Iterable[Mapping[str, Any]]) -> Iterable[Finding]:
    by_model: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["difference"]:
            by_model.setdefault((row["day"], row["model"]), []).append(row)
    for (day, model), different in by_model.items():
        figures = "; ".join(
            f"{row['kind']} {row['theirs']} there, {row['billed'] + row['absorbed']} here"
            for row in different
        )
        yield Finding(
            kind=FindingKind.PROVIDER_DIFFERS,
            message=f"{account.provider} counted other tokens of {model} on {day}: {figures}",
            about=f"{_name(account)} {day} {model}",
            count=sum(abs(row["difference"]) for row in different),
            provider_usage={
                "provider": account.provider, "instances": list(account.instances), "day": day,
                "model": model, "untold": different[0]["untold"],
                "differences": {
                    row["kind"]: {"theirs": row["theirs"], "ours": row["billed"] + row["absorbed"]}
                    for row in different
                },
            },
        )  # fmt: skip


def _period(days: Collection[str]) -> Period:
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (min(days), max(days)))
    begins, ends = first.timestamp(), (last + timedelta(days=1)).timestamp()
    return Period(int(begins) * 1000, int(ends) * 1000)
