"""Periods of invoices: every moment is in exactly one, whatever the day and the zone."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.invoices.periods import name_of, next_name, period
from tests.examples import examples

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "America/Sao_Paulo"]


def ms(*moment: int, zone: str = "UTC") -> int:
    return int(datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp()) * 1000  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("name", "day", "begins", "ends"),
    [
        ("2026-11", 1, (2026, 11, 1), (2026, 12, 1)),
        ("2027-01", 31, (2027, 1, 31), (2027, 2, 28)),
        ("2027-02", 31, (2027, 2, 28), (2027, 3, 31)),
        ("2028-02", 31, (2028, 2, 29), (2028, 3, 31)),
        ("2028-01", 30, (2028, 1, 30), (2028, 2, 29)),
        ("2027-01", 29, (2027, 1, 29), (2027, 2, 28)),
        ("2026-12", 15, (2026, 12, 15), (2027, 1, 15)),
    ],
)
@pytest.mark.parametrize("zone", ZONES)
def test_a_month_without_the_day_begins_on_its_last(
    name: str, day: int, begins: tuple[int, ...], ends: tuple[int, ...], zone: str
) -> None:
    assert period(name, day, zone) == (ms(*begins, zone=zone), ms(*ends, zone=zone))


@settings(max_examples=examples(200))
@given(
    moment_ms=st.integers(ms(1971, 1, 1), ms(2100, 1, 1)),
    day=st.integers(1, 31),
    zone=st.sampled_from(ZONES),
)
def test_every_moment_is_in_one_period(moment_ms: int, day: int, zone: str) -> None:
    name = name_of(moment_ms, day, zone)
    from_ms, until_ms = period(name, day, zone)
    assert from_ms <= moment_ms < until_ms
    assert period(next_name(name), day, zone)[0] == until_ms


@pytest.mark.parametrize(
    "name", ["2026", "2026-13", "2026-00", "11-2026", "2026-11-01", "9999-12", "", "２０２６-11"]
)
def test_what_is_no_month_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="2026-11"):
        period(name, 1, "UTC")
