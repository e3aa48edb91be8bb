"""Months and quarters by the calendar in UTC. Pure."""

from datetime import UTC, datetime

from billing.moments import HOUR_MS, month_begins_ms


def month_edges(from_ms: int, until_ms: int) -> tuple[int, ...]:
    """The start, the starts of the months within, and the end."""
    moment = datetime.fromtimestamp(from_ms / 1000, UTC)
    edges, index = [from_ms], moment.year * 12 + moment.month
    while (starts_ms := month_begins_ms(index // 12, index % 12 + 1)) < until_ms:
        edges.append(starts_ms)
        index += 1
    return (*edges, until_ms)


def whole_hour(moment_ms: int) -> int:
    """The start of its hour."""
    return moment_ms - moment_ms % HOUR_MS


def month_of(moment_ms: int) -> str:
    """`2027-01`."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m")
