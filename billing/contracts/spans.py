"""Spans of time as they are agreed, `+20s`, `+90d`, `+6mo`, `+3y`: counted from a start, by the calendar, in
UTC. Pure; it knows no contract.
"""

import calendar
import re
from datetime import UTC, datetime, timedelta
from typing import Final

FORM: Final = re.compile(r"\+?([0-9]{1,6})(s|min|h|d|w|mo|y)")
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def after(start: datetime, span: str, *, back: bool = False) -> datetime:
    """The moment so long after the start, or before it (`back`). Raises ValueError for what is no span,
    OverflowError beyond what a calendar has.
    """
    found = FORM.fullmatch(span)
    if found is None:
        raise ValueError(f"{span!r} is no span")
    count, unit = -int(found[1]) if back else int(found[1]), found[2]
    if unit in _SECONDS:
        return start + timedelta(seconds=count * _SECONDS[unit])
    months = start.month - 1 + count * (12 if unit == "y" else 1)
    year, month = start.year + months // 12, months % 12 + 1
    if not datetime.min.year <= year <= datetime.max.year:
        raise OverflowError(f"{span!r} leaves the years {datetime.min.year} to {datetime.max.year}")
    # The last of a shorter month, and 28 February for the 29th.
    day = min(start.day, calendar.monthrange(year, month)[1])
    return start.replace(year=year, month=month, day=day)


def after_ms(start_ms: int, span: str) -> int:
    """The same in ms since the epoch, exact."""
    whole, ms = divmod(start_ms, 1000)
    return int(after(datetime.fromtimestamp(whole, UTC), span).timestamp()) * 1000 + ms
