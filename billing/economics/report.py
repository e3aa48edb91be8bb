"""What pools earned and cost over a time, in groups: the parts of `months` added up."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection

from billing.economics.figures import Figures
from billing.economics.machine_time import machine_time
from billing.economics.months import Cell, PoolMonth, share_out
from billing.economics.periods import month_edges, month_of
from billing.economics.reading import Months, read_catalogue, read_held, read_histories, read_used
from billing.reclaims.outlook import quarter_of


class By(StrEnum):
    """What a report is grouped by."""

    QUARTER = "quarter"
    MONTH = "month"
    USE = "use"
    POOL = "pool"
    MODEL = "model"
    CONTRACT = "contract"


@dataclass(frozen=True, slots=True)
class Line:
    """One group; its names in the order of the words. An empty name: no model, no contract."""

    names: tuple[str, ...]
    figures: Figures


@dataclass(frozen=True, slots=True)
class Economics:
    """Lines in the order of their names, and their sum."""

    by: tuple[By, ...]
    from_ms: int
    until_ms: int
    lines: tuple[Line, ...]
    total: Figures


def parse_by(text: str) -> tuple[By, ...]:
    """Read `quarter,use`. ValueError for a word that is none, or stands twice."""
    by = tuple(By(word.strip()) for word in text.split(",") if word.strip())
    if len(set(by)) != len(by):
        raise ValueError(f"{text!r} names a word twice")
    return by


def report(
    connection: Connection, by: Sequence[By], from_ms: int, until_ms: int, pool: str | None = None
) -> Economics:
    """Of [from, until), which are whole hours; of one pool or of all."""
    found: defaultdict[tuple[str, ...], Figures] = defaultdict(Figures)
    months = Months(month_edges(from_ms, until_ms))
    for name, month, cell, figures in _cells(connection, months, pool):
        starts_ms = months.edges_ms[month]
        words = {
            By.QUARTER: quarter_of(starts_ms), By.MONTH: month_of(starts_ms), By.USE: cell.use,
            By.POOL: name, By.MODEL: cell.model, By.CONTRACT: cell.contract,
        }  # fmt: skip
        found[tuple(words[each] for each in by)] += figures
    nothing = Figures()
    lines = tuple(Line(names, figures) for names, figures in sorted(found.items()) if figures != nothing)
    total = Figures.total(line.figures for line in lines)
    return Economics(tuple(by), from_ms, until_ms, lines, total)


def _cells(
    connection: Connection, months: Months, only: str | None
) -> Iterator[tuple[str, int, Cell, Figures]]:
    """Of each pool and month."""
    catalogue = read_catalogue(connection)
    histories = read_histories(connection, catalogue)
    held, used = read_held(connection, catalogue, months), read_used(connection, catalogue, months)
    known = {*histories, *(pool for pool, _ in (*held, *used))}
    for pool in sorted(known if only is None else known & {only}):
        parts = []
        for month, (from_ms, until_ms) in enumerate(months.periods):
            history = histories.get(pool)
            own, taken = ({}, {}) if history is None else machine_time(history, from_ms, until_ms)
            parts.append(PoolMonth(own, taken, held.get((pool, month), []), used.get((pool, month), [])))
        # A month without requests has the tokens of the others.
        usual = PoolMonth({}, {}, used=[each for part in parts for each in part.used]).list_price
        for month, part in enumerate(parts):
            for cell, figures in share_out(part, part.list_price or usual).items():
                yield pool, month, cell, figures
