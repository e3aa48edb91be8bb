"""Moments and spans as people type them: RFC 3339, dates, `now`, and spans such as 20s, 30min, 90d, 6mo or
3y. Knows no noun.

One way everywhere: `+7d` is seven days from another moment; where what is asked for has been, `7d` counts
back from now.
"""

import re
from datetime import UTC, datetime
from typing import Final

import click

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
FORMS: Final = (
    "a date such as 2026-01-31 or 2026-01-31T12:00:00Z, `now`, or a span such as 20s, 30min, "
    "12h, 30d, 6mo, 3y"
)
# For help texts.
AHEAD: Final = "2026-01-31, 2026-01-31T12:00:00Z, `now`, or a span from now such as 30d"
BACK: Final = "2026-01-31, 2026-01-31T12:00:00Z, `now`, or a span back from now such as 30d"


def resolve(
    text: str, *, now: datetime, anchor: datetime, option: str, counts_back: bool = False
) -> datetime:
    """The moment that the text means, in UTC; a span counts from the anchor, by the calendar: back from it if
    so asked, and it has no `+`. Raises BadParameter.
    """
    from billing.contracts.spans import after

    if text == "now":
        return now
    try:
        if is_span(text):
            return after(anchor, text, back=counts_back and not text.startswith("+"))
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise click.BadParameter(
            f"{text!r} is out of range: moments are of the years 1 to 9999.", param_hint=option
        ) from None
    except ValueError:
        raise click.BadParameter(f"{text!r} is no moment. Give {FORMS}.", param_hint=option) from None


def ahead(text: str | None, option: str) -> str | None:
    """RFC 3339 of a moment to come; a span counts from now. None for None."""
    now = datetime.now(UTC)
    return None if text is None else rfc3339(resolve(text, now=now, anchor=now, option=option))


def ahead_or_day(text: str | None, option: str) -> str | None:
    """As `ahead`, but a date alone stays one: it begins where the tenant is."""
    made = ahead(text, option)
    return text if text is not None and _DATE.fullmatch(text) else made


def back(text: str | None, option: str) -> str | None:
    """RFC 3339 of a moment that has been; a span without `+` counts back from now. None for None."""
    if text is None:
        return None
    now = datetime.now(UTC)
    return rfc3339(resolve(text, now=now, anchor=now, option=option, counts_back=True))


def seconds(text: str, option: str) -> int:
    """A span's length, from now on. Raises BadParameter for what is none."""
    if not is_span(text):
        raise click.BadParameter(
            f"{text!r} is no span. Give one such as 20s, 30min, 24h, 30d.", param_hint=option
        )
    now = datetime.now(UTC)
    return int((resolve(text, now=now, anchor=now, option=option) - now).total_seconds())


def is_span(text: str) -> bool:
    """Whether it counts from another moment."""
    from billing.contracts.spans import FORM

    return FORM.fullmatch(text) is not None


def rfc3339(moment: datetime) -> str:
    """In UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
