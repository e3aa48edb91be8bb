"""The periods of invoices: months that begin on a day of the tenant's choice, at its midnight. Pure.

A period is [from, until) in ms since the epoch, and is named after the month in which it begins. Where a
month has no such day, it begins on the month's last.
"""

import re
from calendar import monthrange
from datetime import UTC, date, datetime
from typing import Final

from billing.catalogue.budget_periods import day_begins_ms
from billing.moments import DAY_MS

_NAME: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])", re.ASCII)


def period(name: str, day: int, zone: str) -> tuple[int, int]:
    """The period of this name, such as `2026-11`. Raises ValueError for another form."""
    year, month = _read(name)
    return _begins_ms(year, month, day, zone), _begins_ms(*_next(year, month), day, zone)


def next_name(name: str) -> str:
    """The name of the period after this one."""
    return "{:04d}-{:02d}".format(*_next(*_read(name)))


def name_before(name: str) -> str:
    """The name of the period before this one."""
    year, month = _read(name)
    return f"{year - 1:04d}-12" if month == 1 else f"{year:04d}-{month - 1:02d}"


def name_of(moment_ms: int, day: int, zone: str) -> str:
    """The name of the period in which a moment is."""
    # A month before the one in UTC, and on from there: the day and the zone move it by at most one.
    guess = datetime.fromtimestamp(max(0, moment_ms // 1000 - 40 * 86_400), UTC)
    name = f"{guess.year:04d}-{guess.month:02d}"
    while period(name, day, zone)[1] <= moment_ms:
        name = next_name(name)
    return name


def days(from_ms: int, until_ms: int) -> int:
    """How long a period is, to the nearest day: clocks that change and zones that do make it hours more or
    less.
    """
    return round((until_ms - from_ms) / DAY_MS)


def _read(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    if match is None or not 1970 <= int(match[1]) < 9999:
        raise ValueError("a period is a month such as 2026-11")
    return int(match[1]), int(match[2])


def _next(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)


def _begins_ms(year: int, month: int, day: int, zone: str) -> int:
    return day_begins_ms(date(year, month, min(day, monthrange(year, month)[1])), zone)
