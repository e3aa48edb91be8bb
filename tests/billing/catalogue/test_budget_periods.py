"""Days and months of every time zone: each moment is in exactly one, and the next begins where one ends."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.catalogue.budget_periods import Per, Window, period_of, time_zones

ZONES = st.sampled_from(sorted(time_zones()))
MOMENTS = st.integers(0, 4_102_444_800_000)  # until 2100


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@given(ZONES, MOMENTS, st.sampled_from([Per.DAY, Per.MONTH]))
def test_periods_follow_each_other_without_a_gap(zone: str, moment_ms: int, per: Per) -> None:
    from_ms, until_ms = period_of(per, moment_ms, zone)
    assert until_ms is not None
    assert from_ms <= moment_ms < until_ms
    assert period_of(per, from_ms, zone) == (from_ms, until_ms)
    assert period_of(per, until_ms - 1, zone) == (from_ms, until_ms)
    assert period_of(per, until_ms, zone)[0] == until_ms
    hours = (until_ms - from_ms) / 3_600_000
    # Zones have moved over the date line, and one month has 28 days.
    assert hours <= 49 if per is Per.DAY else 27 * 24 < hours < 32 * 24


@pytest.mark.parametrize(
    ("per", "zone", "moment", "begins", "ends"),
    [
        ("day", "UTC", "2026-02-28T23:59:59Z", "2026-02-28T00Z", "2026-03-01T00Z"),
        ("day", "Europe/Berlin", "2026-03-29T12Z", "2026-03-29T00+01:00", "2026-03-30T00+02:00"),
        ("day", "Asia/Kolkata", "2026-11-29T18:30Z", "2026-11-30T00+05:30", "2026-12-01T00+05:30"),
        ("month", "Asia/Kathmandu", "2028-02-29T00Z", "2028-02-01T00+05:45", "2028-03-01T00+05:45"),
        ("month", "America/New_York", "2026-12-01T04:59Z", "2026-11-01T00-04:00", "2026-12-01T00-05:00"),
        # Clocks skip midnight here: the day begins when they do.
        ("day", "Asia/Beirut", "2025-03-30T12Z", "2025-03-30T01+03:00", "2025-03-31T00+03:00"),
        # And here they show 23:00 again after it.
        ("day", "America/Asuncion", "2023-03-26T03:30Z", "2023-03-25T00-03:00", "2023-03-26T00-04:00"),
    ],
)
def test_a_period_begins_at_midnight_there(per: str, zone: str, moment: str, begins: str, ends: str) -> None:
    assert period_of(Per(per), ms(moment), zone) == (ms(begins), ms(ends))


def test_a_total_has_no_end() -> None:
    assert period_of(Per.TOTAL, ms(datetime.now(UTC).isoformat()), "UTC") == (0, None)


def test_windows_follow_each_other_from_their_date_on_and_before_it() -> None:
    window = Window(7, date(2026, 11, 2))
    zone = "Europe/Berlin"
    begins = int(datetime(2026, 11, 1, 23, tzinfo=UTC).timestamp()) * 1000
    week = 7 * 86_400_000
    for moment, first in ((begins, begins), (begins + week - 1, begins), (begins + week, begins + week)):
        assert period_of(Per.WINDOW, moment, zone, window) == (first, first + week)
    # The week before has the end of summer time in it: begun an hour earlier, as UTC counts.
    before = period_of(Per.WINDOW, begins - 1, zone, window)
    assert before == (begins - week, begins)
    assert period_of(Per.WINDOW, before[0] - 1, zone, window) == (before[0] - week - 3_600_000, before[0])
