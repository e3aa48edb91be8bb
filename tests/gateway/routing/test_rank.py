"""The ranking: a prompt goes where it is cached, unless reading it elsewhere is quicker."""

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from billing.wire.tokens import Weights
from gateway.routing.rank import (
    PREFILL_TOKENS_S,
    Candidate,
    Rates,
    Why,
    calibrated_prefill,
    rank,
    seconds,
)
from tests.gateway.routing.gateways import entry

RATES = Rates(prefill=1_000.0, decode=500.0)


def at(
    name: str,
    cached: float = 0,
    *,
    kept: float = 0,
    queued: float = 0,
    to_decode: float = 0,
    avoided: bool = False,
) -> Candidate:
    return Candidate(entry(name), cached, kept, queued, to_decode, avoided)


def first(*candidates: Candidate, prompt: int = 2_000, turn: int = 0) -> tuple[str, Why]:
    ranking = rank(candidates, prompt, RATES, turn)
    return ranking.entries[0].instance, ranking.why


tokens = st.integers(0, 5_000).map(float)
candidates = st.lists(
    st.builds(Candidate, st.just(entry("i")), tokens, tokens, tokens, tokens, st.booleans()),
    min_size=1,
    max_size=9,
)


@given(candidates, st.integers(5_000, 10_000), st.integers(0, 2**80))
def test_every_instance_is_ranked_once_by_its_seconds(found: list[Candidate], prompt: int, turn: int) -> None:
    named = [replace(each, entry=entry(f"i{place}")) for place, each in enumerate(found)]
    by_name = {each.entry.instance: each for each in named}
    ranked = [by_name[each.instance] for each in rank(named, prompt, RATES, turn).entries]
    assert sorted(each.entry.instance for each in ranked) == sorted(by_name)
    assert [each.avoided for each in ranked] == sorted(each.avoided for each in ranked)
    for before, after in itertools.pairwise(ranked):
        if before.avoided == after.avoided:
            assert seconds(before, prompt, RATES) <= seconds(after, prompt, RATES) + 0.01


def test_a_prompt_goes_where_it_is_cached_until_the_wait_is_longer() -> None:
    assert first(at("a"), at("b", 1_000)) == ("b", Why.PREFIX)
    # 1,000 tokens that are cached are worth a second: as much as 500 tokens of other answers cost.
    assert first(at("a"), at("b", 1_000, to_decode=450)) == ("b", Why.PREFIX)
    assert first(at("a"), at("b", 1_000, to_decode=550)) == ("a", Why.BUSY)
    assert first(at("a"), at("b", 1_000, queued=900)) == ("b", Why.PREFIX)
    assert first(at("a"), at("b", 1_000, queued=1_100)) == ("a", Why.BUSY)


def test_of_those_that_have_nearly_all_of_it_the_idlest_serves() -> None:
    assert first(at("a", 1_900, queued=500), at("b", 1_600), at("c")) == ("b", Why.PREFIX)
    assert first(at("a", 1_900, queued=1_500), at("b", 1_000), at("c", queued=9)) == ("b", Why.BUSY)


def test_without_a_match_the_least_load_decides() -> None:
    assert first(at("a", queued=100), at("b", to_decode=40), at("c", queued=30)) == ("c", Why.LOAD)


def test_a_session_stays_unless_the_wait_is_much_longer() -> None:
    assert first(at("a"), at("b", kept=512, queued=400)) == ("b", Why.SESSION)
    assert first(at("a"), at("b", kept=512, queued=600)) == ("a", Why.BUSY)


def test_an_instance_that_has_just_failed_comes_last() -> None:
    assert first(at("a", queued=5_000), at("b", 2_000, avoided=True)) == ("a", Why.BUSY)


def test_equal_instances_take_turns_by_what_prompts_have_in_common() -> None:
    equal = [at(name) for name in "abcd"]
    chosen = Counter(first(*equal, turn=turn)[0] for turn in range(400))
    assert set(chosen.values()) == {100}
    assert first(*equal, turn=7) == first(*equal, turn=7)


def test_rates_are_as_calibrated_and_else_as_the_weights_relate() -> None:
    weights = Weights(1, 2_000, 200, 8_000)
    assert calibrated_prefill(weights, 40_000_000) == 20_000.0
    assert calibrated_prefill(weights, None) == PREFILL_TOKENS_S
    assert Rates.of(weights, 20_000.0) == Rates(20_000.0, 5_000.0)
