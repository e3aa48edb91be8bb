"""Long prompts: how long they may be, how many at once, and what is said of a fit that misses them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.calibration.fit import Fit, Measurement
from serving.calibration.load import Step
from serving.calibration.long_prompts import hold_long, remarks_on_long
from serving.calibration.mixes import Prompts, long_mix, mixes_for
from serving.calibration.probe import EngineAddress, Probe
from tests.fixtures.engine import EngineMaker

CONTEXT = 8192
SECONDS = 0.2


def fit_of(tokens_per_s: int) -> Fit:
    return Fit(1000, 100, 5000, 1000 * tokens_per_s, cached_measured=True)


def ten_prompts(seconds: float) -> Step:
    done = Measurement("prompts of 4096", seconds, 40_960, 0, 0)
    return Step(sequences=2, done=done, tpot_ms=math.nan, ttft_ms=math.nan, client_busy=0.1, cached_told=True)


@given(st.integers(128, 200_000), st.integers(0, 10**7))
def test_a_long_prompt_is_half_the_context_or_what_there_is_time_for(
    context_tokens: int, tokens_most: int
) -> None:
    mix = long_mix(context_tokens, tokens_most)
    if context_tokens <= 2_000:
        assert mix is None
        return
    known = max(
        shape.cached + shape.uncached for each in mixes_for(context_tokens).fitted for shape in each.shapes
    )
    tokens = min(tokens_most, context_tokens // 2)
    if mix is None:
        assert tokens <= known
        return
    ask = Prompts("salt", 1).next(mix)
    assert (len(ask.prompt), ask.output, mix.name) == (tokens, 1, f"prompts of {tokens}")
    assert tokens > known


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4.096, None),
        (4.8, None),
        (3.6, None),
        (8.192, "100% more time"),
        (2.048, "50% less time"),
        (4.9, "20% more"),
    ],
)
def test_a_fit_that_misses_long_prompts_is_told_and_by_how_much(seconds: float, said: str | None) -> None:
    remarks = remarks_on_long(CONTEXT, fit_of(10_000), ten_prompts(seconds))
    if said is None:
        assert remarks == ()
    else:
        assert remarks[0].startswith(f"Prompts of 4096 tokens take {said}")


def test_that_they_were_not_tried_is_told_only_where_there_are_any() -> None:
    assert "--seconds-per-step" in remarks_on_long(CONTEXT, fit_of(10), None)[0]
    assert remarks_on_long(2_000, fit_of(10), None) == ()


async def test_they_are_as_long_and_as_many_as_a_step_reads(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "1", "--prefill-tokens-per-s", "1000000", "--context", str(CONTEXT))
    async with Probe(EngineAddress(engine.url, engine.key, engine.model, abort=True)) as probe:
        prompts = Prompts("salt", 1)
        for tokens_per_s, sequences, at_once, tokens in (
            (10_000, 8, 2, 2000), (1_000_000, 8, 6, 4096), (1_000_000, 3, 3, 4096), (10_000, 1, 1, 2000),
        ):  # fmt: skip
            step = await hold_long(probe, prompts, fit_of(tokens_per_s), CONTEXT, sequences, SECONDS)
            assert step is not None
            assert (step.sequences, step.done.mix) == (at_once, f"prompts of {tokens}")
            assert step.done.uncached >= 4 * tokens
            assert step.done.uncached % tokens == step.done.cached == 0
        asked = engine.counters()["prompt"]
        assert await hold_long(probe, prompts, fit_of(4_000), CONTEXT, 8, SECONDS) is None
        assert engine.counters()["prompt"] == asked == probe.spent.prompt
