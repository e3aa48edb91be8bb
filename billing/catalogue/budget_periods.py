"""The periods of budgets: days and months of a time zone. Pure.

A period is [from, until) in ms since the epoch. Each moment is in exactly one, whatever the zone's clocks do.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones


class Per(StrEnum):
    """How long a budget's amount lasts. `window`: some days; `total`: for ever."""

    DAY = "day"
    MONTH = "month"
    WINDOW = "window"
    TOTAL = "total"
    # Until the next invoice.
    PREPAID = "prepaid"


@dataclass(frozen=True, slots=True)
class Window:
    """So many days each, counted from the midnight of a date."""

    days: int
    starts: date


@lru_cache(maxsize=1)
def time_zones() -> frozenset[str]:
    """The names of all time zones, as in `Europe/Berlin`."""
    return frozenset(available_timezones())


def period_of(per: Per, moment_ms: int, zone: str, window: Window | None = None) -> tuple[int, int | None]:
    """The period in which this moment is; a total has no end."""
    if per in {Per.TOTAL, Per.PREPAID}:
        return 0, None
    local = datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone(ZoneInfo(zone)).date()
    first = local
    if per is Per.MONTH:
        first = local.replace(day=1)
    elif per is Per.WINDOW and window is not None:
        first = local - timedelta(days=(local - window.starts).days % window.days)
    # Where clocks go back over midnight, a moment's date may be one before or after its period's.
    while day_begins_ms(first, zone) > moment_ms:
        first = _before(per, first, window)
    while day_begins_ms(following := _after(per, first, window), zone) <= moment_ms:
        first = following
    return day_begins_ms(first, zone), day_begins_ms(_after(per, first, window), zone)


def _after(per: Per, first: date, window: Window | None) -> date:
    if per is Per.MONTH:
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=1 if window is None else window.days)


def _before(per: Per, first: date, window: Window | None) -> date:
    if per is Per.MONTH:
        return (first - timedelta(days=1)).replace(day=1)
    return first - timedelta(days=1 if window is None else window.days)


@lru_cache(maxsize=1024)
def day_begins_ms(day: date, zone: str) -> int:
    """When a day begins. Where clocks skip its midnight, that is when they do."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    # A skipped midnight is read by the offset before the skip: the same instant as the first time after it.
    return int(midnight.timestamp()) * 1000
