"""The circuit breaker of an instance, with the time given."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.attempt_failed import retry_after_s
from gateway.errors import InstancesBusy, NoInstance
from gateway.upstream import breaker
from gateway.upstream.breaker import AVOIDED_S, FAILURES_MAX, JITTER, PAUSE_S, PAUSE_S_MAX, Breakers
from tests.gateway.upstream.asked import INSTANCE

OTHER = replace(INSTANCE, instance="i2")
LATER = PAUSE_S * (1 + JITTER)


def opened(now: float = 0.0) -> tuple[Breakers, list[tuple[str, bool]]]:
    """An instance that has just failed too often, and what was told of it."""
    told: list[tuple[str, bool]] = []
    breakers = Breakers(lambda instance, is_open: told.append((instance, is_open)))
    for _ in range(FAILURES_MAX):
        breakers.failed(INSTANCE, now)
    return breakers, told


def usable(breakers: Breakers, now: float) -> list[str]:
    return [entry.instance for entry in breakers.usable([INSTANCE, OTHER], now)]


def test_one_that_failed_once_is_tried_after_others_for_a_moment() -> None:
    breakers = Breakers()
    breakers.failed(INSTANCE, 0.0)
    assert usable(breakers, 0.0) == ["i1", "i2"]
    assert breakers.avoided("i1", AVOIDED_S - 0.01)
    assert not breakers.avoided("i1", AVOIDED_S)
    assert not breakers.avoided("i2", 0.0)


def test_it_opens_after_several_failures_in_a_row_and_not_before() -> None:
    told: list[tuple[str, bool]] = []
    breakers = Breakers(lambda *change: told.append(change))
    for _ in range(FAILURES_MAX - 1):
        breakers.failed(INSTANCE, 0.0)
    assert (usable(breakers, 0.0), told) == (["i1", "i2"], [])
    breakers.failed(INSTANCE, 0.0)
    assert (usable(breakers, 0.0), told) == (["i2"], [("i1", True)])


def test_a_success_between_failures_begins_the_row_anew() -> None:
    breakers = Breakers()
    for _ in range(3 * FAILURES_MAX):
        breakers.failed(INSTANCE, 0.0)
        breakers.succeeded(INSTANCE)
    assert breakers.troubled == {}


def test_after_the_pause_one_request_is_the_probe() -> None:
    breakers, told = opened()
    assert not breakers.lets_through(INSTANCE, PAUSE_S * (1 - JITTER) - 0.01)
    assert usable(breakers, LATER) == ["i1", "i2"]
    assert [breakers.lets_through(INSTANCE, LATER) for _ in range(3)] == [True, False, False]
    assert usable(breakers, LATER) == ["i2"]
    breakers.answered(INSTANCE)
    assert breakers.lets_through(INSTANCE, LATER)
    assert told == [("i1", True), ("i1", False)]
    breakers.ended(INSTANCE, well=True)
    assert breakers.troubled == {}


def test_a_probe_that_fails_opens_it_for_longer() -> None:
    breakers, told = opened()
    now, pauses = 0.0, []
    for _ in range(8):
        began = now
        while not breakers.lets_through(INSTANCE, now):
            now += 0.01
        pauses.append(now - began)
        breakers.failed(INSTANCE, now)
        breakers.ended(INSTANCE, well=False)
    assert all(later > sooner for sooner, later in itertools.pairwise(pauses[:4]))
    assert max(pauses) <= PAUSE_S_MAX * (1 + JITTER) + 0.02
    assert told == [("i1", True)]


def test_a_probe_without_a_verdict_makes_way_for_another() -> None:
    breakers, _ = opened()
    assert breakers.lets_through(INSTANCE, LATER)
    breakers.ended(INSTANCE, well=False)
    assert breakers.lets_through(INSTANCE, LATER)
    assert breakers.lets_through(INSTANCE, LATER + breaker.PROBE_S)


def test_fault_33_one_that_answers_and_then_fails_opens_at_once() -> None:
    breakers, _ = opened()
    assert breakers.lets_through(INSTANCE, LATER)
    breakers.answered(INSTANCE)
    assert usable(breakers, 0.0) == ["i1", "i2"]
    breakers.failed(INSTANCE, 0.0)
    assert usable(breakers, 0.0) == ["i2"]


@pytest.mark.parametrize(("said", "held"), [(7.0, 7.0), (0.5, 0.5), (86_400.0, breaker.RETRY_AFTER_S_MAX)])
def test_what_takes_no_more_is_left_alone_for_as_long_as_it_says(said: float, held: float) -> None:
    breakers = Breakers()
    assert breakers.limited(INSTANCE, 0.0, said) == held
    assert usable(breakers, held - 0.01) == ["i2"]
    assert usable(breakers, held) == ["i1", "i2"]
    error = breakers.error([INSTANCE], 0.0)
    assert isinstance(error, InstancesBusy)
    assert error.retry_after_ms == int(held * 1000)


def test_what_was_sent_before_it_opened_says_nothing_of_now() -> None:
    breakers = Breakers()
    breakers.limited(INSTANCE, 0.0, 20.0)
    breakers.answered(INSTANCE)
    breakers.ended(INSTANCE, well=True)
    for _ in range(30):
        breakers.failed(INSTANCE, 1.0)
        breakers.limited(INSTANCE, 1.0, None)
    assert usable(breakers, 19.9) == ["i2"]
    assert usable(breakers, 20.0) == ["i1", "i2"]


def test_failures_of_what_was_sent_before_do_not_prolong_the_pause() -> None:
    breakers, _ = opened()
    for _ in range(30):
        breakers.failed(INSTANCE, 0.1)
    assert usable(breakers, LATER) == ["i1", "i2"]


def test_the_error_tells_when_the_first_of_them_may_be_tried() -> None:
    breakers = Breakers()
    assert breakers.error([INSTANCE, OTHER], 0.0) is None
    breakers.refused(INSTANCE, 0.0)
    breakers.limited(OTHER, 0.0, 5.0)
    error = breakers.error([INSTANCE, OTHER], 2.0)
    assert isinstance(error, InstancesBusy)
    assert error.retry_after_ms == 3000
    error = breakers.error([INSTANCE], 2.0)
    assert type(error) is NoInstance
    assert error.retry_after_ms == int((breaker.REFUSED_S - 2) * 1000)


def test_an_engine_that_was_started_again_is_in_no_trouble() -> None:
    breakers, told = opened()
    again = replace(INSTANCE, epoch="e2")
    assert breakers.usable([again], 0.0) == [again]
    assert breakers.lets_through(again, 0.0)
    assert told == [("i1", True), ("i1", False)]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"7", 7.0), (b"0", 0.0), (b" 1.5 ", 1.5), (b"Thu, 01 Jan 1970 00:01:00 GMT", 50.0),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0), (b"", None), (b"-1", None), (b"soon", None), (b"1e9", None),
        (b"nan", None), (b"\xb2", None), (b"9" * 40, None),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_both_forms(header: bytes, seconds: float | None) -> None:
    assert retry_after_s(header, 10.0) == seconds


@given(header=st.binary(max_size=64))
def test_no_header_breaks_it(header: bytes) -> None:
    found = retry_after_s(header, 1e9)
    assert found is None or found >= 0


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["failed", "limited", "refused", "answered", "succeeded", "send", "drop"]),
            st.floats(0, 40),
        ),
        max_size=60,
    )
)
def test_at_most_one_request_is_out_while_it_is_open(steps: list[tuple[str, float]]) -> None:
    told: list[bool] = []
    breakers, now, out = Breakers(lambda _, is_open: told.append(is_open)), 0.0, 0.0
    for step, wait_s in steps:
        now += wait_s
        match step:
            case "send":
                is_open = bool(told) and told[-1]
                if breakers.lets_through(INSTANCE, now) and is_open:
                    assert now >= out + breaker.PROBE_S or out == 0.0
                    out = now
            case "drop":
                breakers.ended(INSTANCE, well=False)
                out = 0.0
            case "failed":
                breakers.failed(INSTANCE, now)
                out = 0.0
            case "limited":
                breakers.limited(INSTANCE, now, None)
                out = 0.0
            case "refused":
                breakers.refused(INSTANCE, now)
                out = 0.0
            case _:
                getattr(breakers, step)(INSTANCE)
                out = 0.0
    assert all(first != second for first, second in itertools.pairwise(told)), "told of changes only"
    assert breakers.usable([INSTANCE], now + 200) == [INSTANCE]
