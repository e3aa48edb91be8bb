"""Moments for people and JSON, in UTC."""

from datetime import UTC, datetime
from typing import Final

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS


def utc(moment_ms: int) -> str:
    """RFC 3339 in UTC, without a fraction if it is a whole second; a moment that no calendar has, as its
    number.
    """
    whole, ms = divmod(moment_ms, 1000)
    try:
        shown = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{moment_ms} ms"
    return shown + (f".{ms:03d}Z" if ms else "Z")


def day_of(moment_ms: int) -> str:
    """The UTC day of a moment."""
    return datetime.fromtimestamp(moment_ms // 1000, UTC).date().isoformat()


def month_begins_ms(year: int, month: int) -> int:
    """When a month begins, in UTC."""
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000
