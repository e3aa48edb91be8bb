"""The instances that could serve a request, ranked by the seconds until its answer could begin. Pure.

    (uncached tokens of its prompt + tokens of prompts that wait there) / prefill rate
        + output tokens that are still to come there / decode rate

A prompt goes where it is cached, unless the wait there is longer than reading it elsewhere takes.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct

from billing.wire.instance_entry import InstanceEntry
from billing.wire.tokens import Weights
from billing.wire.value import Value

# Uncached prompt tokens that an instance reads in a second, if nothing else is known.
PREFILL_TOKENS_S: Final = 10_000.0
# An instance with nearly as much of the prompt as the best one counts as one that has it.
_NEARLY: Final = 0.8
# Differences below this are noise: several gateways would all act on the same one.
_TIE_S: Final = 0.01


class Why(StrEnum):
    """Why a request was sent to an instance. `load`: no instance has any of its prompt. `busy`: another has
    more of it, but is too busy. `next`: the best one had no free slot, or failed.
    """

    PREFIX = "prefix"
    SESSION = "session"
    BUSY = "busy"
    LOAD = "load"
    NEXT = "next"


class Rates(Value, frozen=True):
    """Tokens a second of one instance that does nothing else."""

    prefill: float
    decode: float

    @classmethod
    def of(cls, weights: Weights, prefill: float) -> "Rates":
        """The work of an output token is that of so many prompt tokens as the weights say."""
        return cls(prefill, prefill * weights.w_in_mu / max(1, weights.w_out_mu))


def calibrated_prefill(weights: Weights, capacity_mu_s: int | None) -> float:
    """Prompt tokens a second as calibrated; without a calibration a guess."""
    return PREFILL_TOKENS_S if capacity_mu_s is None else capacity_mu_s / max(1, weights.w_in_mu)


class Candidate(Struct, frozen=True, gc=False):
    """An instance as it is now. In tokens: `cached` of this prompt, `queued` of other prompts, `to_decode` of
    other answers. `kept`: the tokens that its session is worth there, which may be more than the prompt has.
    `avoided`: it has just failed.
    """

    entry: InstanceEntry
    cached: float
    kept: float
    queued: float
    to_decode: float
    avoided: bool


class Ranking(NamedTuple):
    """Best first, and why the first one is."""

    entries: list[InstanceEntry]
    why: Why


def seconds(candidate: Candidate, prompt_tokens: int, rates: Rates) -> float:
    """Until the answer could begin."""
    cached, kept = candidate.cached, candidate.kept
    uncached = prompt_tokens - (cached if cached > kept else kept)
    return (uncached + candidate.queued) / rates.prefill + candidate.to_decode / rates.decode


def rank(candidates: Sequence[Candidate], prompt_tokens: int, rates: Rates, turn: int) -> Ranking:
    """`turn`: a number of this request, by which those that are equally good are ordered. The same for
    prompts that begin alike, so that all gateways send those to the same place, and others elsewhere.
    """
    count = len(candidates)
    keyed = []
    for place, candidate in enumerate(candidates):
        ties = int(seconds(candidate, prompt_tokens, rates) / _TIE_S)
        keyed.append((candidate.avoided, ties, (place - turn) % count, place))
    keyed.sort()
    first = candidates[keyed[0][3]]
    return Ranking([candidates[key[3]].entry for key in keyed], _why(first, candidates))


def _why(first: Candidate, candidates: Sequence[Candidate]) -> Why:
    most, is_kept = 0.0, False
    for candidate in candidates:
        most = max(most, candidate.cached)
        is_kept = is_kept or candidate.kept > 0
    if most > 0 and first.cached >= _NEARLY * most:
        return Why.PREFIX
    if first.kept:
        return Why.SESSION
    return Why.BUSY if most > 0 or is_kept else Why.LOAD
