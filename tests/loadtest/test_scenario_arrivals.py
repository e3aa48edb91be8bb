"""Schedules of scenarios: how often, when, by whom, at which gateway, and how long prompts are for the
engine that reads them.
"""

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.chat_template import render_chat
from loadtest.engine.prefix_cache import PrefixCache
from loadtest.engine.tokens import split
from loadtest.scenarios import vtc
from loadtest.scenarios.arrivals import (
    Arrival,
    Shape,
    even,
    increasing,
    on_off,
    poisson,
    prompt,
    requests,
    spread,
    together,
)
from loadtest.scenarios.client import body
from loadtest.scenarios.cost import PROBE_RATE, probe_requests
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.vtc import SUITES, Suite

rates = st.floats(0.5, 50)


@given(rates, st.floats(0, 100), st.integers(1, 60))
def test_even_arrivals_have_one_gap_and_fill_their_time(rate: float, begin: float, seconds: int) -> None:
    times = list(even(rate, begin, begin + seconds))
    assert len(times) == pytest.approx(rate * seconds, abs=0.501)
    assert all(later - earlier == pytest.approx(1 / rate, rel=1e-6) for earlier, later in pairwise(times))
    assert all(begin <= at <= begin + seconds + 1 / rate for at in times)


def test_poisson_arrivals_begin_where_they_are_told_and_have_their_rate() -> None:
    times = list(poisson(20, 100, 400, 5))
    assert 100 <= times[0] < times[-1] < 400
    assert len(times) == pytest.approx(6000, rel=0.05)
    assert times == list(poisson(20, 100, 400, 5)) != list(poisson(20, 100, 400, 6))


@given(rates, rates)
def test_an_increasing_rate_is_at_each_half_what_its_ramp_says(first: float, last: float) -> None:
    times = list(increasing(first, last, 10, 110))
    assert len(times) == int(50 * (first + last))
    early = sum(at < 60 for at in times)
    middle = (first + last) / 2
    assert early == pytest.approx(25 * (first + middle), abs=1)
    assert all(10 <= at <= 110.001 for at in times)
    assert all(earlier < later for earlier, later in pairwise(times))


def test_on_and_off_phases_take_turns_and_on_comes_first() -> None:
    times = list(on_off(even(10, 50, 90), 5, 15, begin_s=50))
    assert len(times) == 100
    assert all((at - 50) % 20 < 5 for at in times)
    assert {int((at - 50) // 20) for at in times} == {0, 1}


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 300))
def test_any_stretch_is_spread_by_shares(shares: list[int], length: int) -> None:
    counted = Counter(islice(spread(shares), length))
    for position, share in enumerate(shares):
        assert abs(counted[position] - length * share / sum(shares)) <= len(shares)


def test_nine_of_ten_requests_go_to_the_second_gateway() -> None:
    made = requests("heavy", even(10, 0, 10), Shape(1, 1), tier="flex", gateways=(1, 9))
    assert Counter(arrival.gateway for arrival in made) == {0: 10, 1: 90}
    assert {(arrival.tenant, arrival.tier) for arrival in made} == {("heavy", "flex")}


def test_answers_vary_around_their_shape_and_are_the_same_again() -> None:
    made = requests("crowd", even(10, 0, 200), Shape(100, 100), vary=0.5)
    lengths = [arrival.shape.output_tokens for arrival in made]
    assert (min(lengths), max(lengths)) == (pytest.approx(50, abs=2), pytest.approx(150, abs=2))
    assert sum(lengths) / len(lengths) == pytest.approx(100, rel=0.03)
    assert {arrival.shape.input_tokens for arrival in made} == {100}
    assert made == requests("crowd", even(10, 0, 200), Shape(100, 100), vary=0.5)


def test_parts_are_merged_by_time() -> None:
    merged = together(requests("a", [1, 5], Shape(1, 1)), requests("b", [0, 3], Shape(1, 1)))
    assert [arrival.tenant for arrival in merged] == ["b", "a", "b", "a"]


@pytest.mark.parametrize("tokens", [40, 100, 2000])
def test_a_prompt_has_the_tokens_that_were_asked_for(tokens: int) -> None:
    sent = body("sim", Arrival(0, "a", Shape(tokens, 7), "flex"), 1_000_003)
    assert len(split(render_chat(sent)[0])) == tokens
    assert (sent["max_tokens"], sent["min_tokens"], sent["ignore_eos"], sent["service_tier"]) == (
        7,
        7,
        True,
        "flex",
    )


def test_no_prompt_is_found_in_the_prefix_cache_of_another() -> None:
    cache = PrefixCache(16, 65_536)
    for number in (0, 1, 2, 1_000_000):
        sent = body("sim", Arrival(0, "a", Shape(100, 1)), number)
        assert cache.match_and_insert("", split(render_chat(sent)[0]))[0] == 0
    assert prompt(100, 3) == prompt(100, 3)


def test_with_all_slots_taken_an_engine_does_what_its_calibration_says() -> None:
    speed = EngineSpeed(slots=32, decode_ms=10, prefill_tokens_per_s=20_000)
    steps_per_s, seconds = 100, 1.0
    # Decoding alone: 32 tokens a step. Prefill alone: 20,000 tokens a second.
    assert speed.units(0, 32 * steps_per_s * seconds) == pytest.approx(speed.capacity_units_s)
    assert speed.units(20_000 * seconds, 0) == pytest.approx(speed.capacity_units_s)


def test_probes_come_evenly_from_everybody_at_the_only_gateway() -> None:
    made = probe_requests([f"t{number}" for number in range(10)], 5, 15)
    assert {arrival.gateway for arrival in made} == {0}
    assert {arrival.tenant: None for arrival in made[:10]} == {f"t{number}": None for number in range(10)}
    assert len(made) == pytest.approx(10 * PROBE_RATE, rel=0.02)
    assert all(
        later.at_s - earlier.at_s == pytest.approx(1 / PROBE_RATE) for earlier, later in pairwise(made)
    )


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_suite_wants_more_than_there_is_and_ends_in_time(suite: Suite) -> None:
    made = suite.arrivals(60)
    asked = (
        sum(vtc.SPEED.units(arrival.shape.input_tokens, arrival.shape.output_tokens) for arrival in made) / 60
    )
    assert asked > 1.2 * vtc.SPEED.capacity_units_s
    assert {arrival.tier for arrival in made} == {"default"}
    assert all(0 <= arrival.at_s <= 60 for arrival in made)


def test_increase_keeps_its_modest_tenant_below_its_share_and_grows_the_other() -> None:
    made = vtc.increase(60)
    units = dict.fromkeys(("modest", "steady", "growing"), 0.0)
    for arrival in made:
        units[arrival.tenant] += vtc.SPEED.units(arrival.shape.input_tokens, arrival.shape.output_tokens) / 60
    assert units["modest"] < vtc.SPEED.capacity_units_s / 3 < units["steady"]
    early, late = (
        sum(arrival.tenant == "growing" and low <= arrival.at_s < low + 20 for arrival in made)
        for low in (0, 40)
    )
    assert late > 4 * early


def test_shift_changes_lengths_and_rates_from_third_to_third() -> None:
    made = vtc.distribution_shift(90)
    shapes = [
        {arrival.shape for arrival in made if low <= arrival.at_s < low + 30 and arrival.tenant == "two"}
        for low in (0, 30, 60)
    ]
    assert shapes == [{vtc.MIDDLE}, {vtc.LONG}, {vtc.MIDDLE}]
    assert not [arrival for arrival in made if arrival.tenant == "one" and 5 <= arrival.at_s < 10]
