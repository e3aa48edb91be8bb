"""Moments and spans as people type them: RFC 3339, dates, `now`, and spans such as 30min, 90d, 6mo or 3y. Knows no noun and no clock."""

from datetime import UTC, datetime
from typing import Final

import click

FORMS: Final = "2027-01-31, 2027-01-31T12:00:00Z, now, or a span such as 30min, 90d, 6mo, 3y"


def resolve(text: str, *, now: datetime, anchor: datetime, option: str) -> datetime:
    """The moment that the text means, in UTC; a span counts from the anchor, by the calendar. Raises BadParameter."""
    from billing.contracts.spans import after

    if text == "now":
        return now
    try:
        if is_span(text):
            return after(anchor, text)
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise click.BadParameter(
            f"{text!r} is out of range: moments end with the year 9999.", param_hint=option
        ) from None
    except ValueError:
        raise click.BadParameter(f"{text!r} is no moment: {FORMS}.", param_hint=option) from None


def is_span(text: str) -> bool:
    """Whether it counts from another moment."""
    from billing.contracts.spans import FORM

    return FORM.fullmatch(text) is not None


def rfc3339(moment: datetime) -> str:
    """In UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
