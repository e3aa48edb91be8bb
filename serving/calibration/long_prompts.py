"""Measures prompts far longer than those of the fit: whether reading them costs what the fit predicts.
Bounded in time, and no part of the fit.
"""

from typing import Final

from serving.calibration.fit import Fit
from serving.calibration.load import Step, hold
from serving.calibration.mixes import LONG_CONTEXT_TOKENS, Prompts, long_mix
from serving.calibration.probe import Probe

# Two at once keep an engine busy; more, where at least so many times as many are read in a step: those that
# end together count at one edge of the count, and may not at the other.
_AT_ONCE_LEAST: Final = 2
_WAVES_LEAST: Final = 8
_ANSWERS_LEAST: Final = 4
# By what part of its time a fit may miss before whoever sells by it is told.
_MISS_MOST: Final = 0.15


async def hold_long(
    probe: Probe, prompts: Prompts, fit: Fit, context_tokens: int, sequences: int, seconds: float
) -> Step | None:
    """Measure prompts of half the context, or of the length that takes one step by the fit. None if that is
    not longer than before. Raises ProbeFailed.
    """
    tokens_per_step = fit.capacity_mu_s / fit.w_in_mu * seconds
    mix = long_mix(context_tokens, int(tokens_per_step))
    if mix is None:
        return None
    in_a_step = int(tokens_per_step / mix.shapes[0].uncached)
    at_once = min(sequences, max(_AT_ONCE_LEAST, in_a_step // _WAVES_LEAST))
    return await hold(probe, prompts, mix, at_once, seconds, answers_least=_ANSWERS_LEAST)


def remarks_on_long(context_tokens: int, fit: Fit, step: Step | None) -> tuple[str, ...]:
    """What an operator should know before selling long contexts by the fit."""
    if context_tokens <= LONG_CONTEXT_TOKENS:
        return ()
    if step is None:
        return (
            "Long prompts were not tried: at this pace one takes longer than a step. Give each more "
            "--seconds-per-step.",
        )
    error = fit.error_of(step.done)
    if abs(error) <= _MISS_MOST:
        return ()
    # The other way round than the error: by how much they take longer than was predicted.
    off = 1 / (1 + error) - 1
    word = "more" if off > 0 else "less"
    return (
        f"{step.done.mix.capitalize()} tokens take {abs(off):.0%} {word} time than the fit says: mind that "
        "where you sell them.",
    )
