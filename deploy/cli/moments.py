"""Moments and spans as people type them: RFC 3339, dates, `now`, and spans such as 30min, 90d, 6mo or 3y. Knows no noun and no clock."""

import calendar
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_SPAN: Final = re.compile(r"(\d{1,6})(min|h|d|w|mo|y)", re.ASCII)
_MINUTES: Final = {"min": 1, "h": 60, "d": 1440, "w": 10080}
FORMS: Final = "2027-01-31, 2027-01-31T12:00:00Z, now, or a span such as 30min, 90d, 6mo, 3y"


def resolve(text: str, *, now: datetime, anchor: datetime, option: str) -> datetime:
    """The moment that the text means; a span counts from the anchor, by the calendar. Raises BadParameter."""
    if text == "now":
        return now
    try:
        if found := _SPAN.fullmatch(text.removeprefix("+")):
            return _after(anchor, int(found[1]), found[2])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no moment: {FORMS}.", param_hint=option) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def rfc3339(moment: datetime) -> str:
    """In UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _after(anchor: datetime, count: int, unit: str) -> datetime:
    if unit in _MINUTES:
        return anchor + timedelta(minutes=count * _MINUTES[unit])
    months = anchor.month - 1 + count * (12 if unit == "y" else 1)
    year, month = anchor.year + months // 12, months % 12 + 1
    # The last of a shorter month, and 28 February for the 29th.
    day = min(anchor.day, calendar.monthrange(year, month)[1])
    return anchor.replace(year=year, month=month, day=day)
