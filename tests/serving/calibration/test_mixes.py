"""What is asked of an engine: it fits the context, and is cached exactly where it should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.calibration.mixes import CONTEXT_TOKENS_LEAST, Prompts, mixes_for


@given(st.integers(CONTEXT_TOKENS_LEAST, 200_000), st.integers(0, 2**32))
def test_every_request_fits_the_context(context_tokens: int, seed: int) -> None:
    mixes = mixes_for(context_tokens)
    prompts = Prompts("salt", seed)
    for mix in (mixes.typical, *mixes.fitted, mixes.held_back):
        for midway in (True, False, False):
            ask = prompts.next(mix, midway=midway)
            assert ask.prompt
            assert ask.output >= 1
            assert len(ask.prompt) + ask.output <= context_tokens


def test_only_what_is_to_be_cached_shares_a_beginning_and_a_salt() -> None:
    mixes = mixes_for(2048)
    prompts = Prompts("salt", 1)
    by_name = {mix.name: mix for mix in mixes.fitted}
    fresh = [prompts.next(by_name["reading"]) for _ in range(20)]
    assert len({ask.cache_salt for ask in fresh}) == 20
    assert len({tuple(ask.prompt) for ask in fresh}) == 20
    again = [prompts.next(by_name["rereading"]) for _ in range(20)]
    cached = by_name["rereading"].shapes[0].cached
    assert {ask.cache_salt for ask in again} == {"salt"}
    assert len({tuple(ask.prompt[:cached]) for ask in again}) <= 4
    assert len({tuple(ask.prompt[cached:]) for ask in again}) == 20


def test_the_held_back_mix_is_none_of_the_fitted() -> None:
    mixes = mixes_for(2048)
    fitted = {shape for mix in (mixes.typical, *mixes.fitted) for shape in mix.shapes}
    assert not fitted & set(mixes.held_back.shapes)


def test_a_context_that_holds_hardly_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        mixes_for(CONTEXT_TOKENS_LEAST - 1)
