"""The balance of one run of an engine: produced = billed + absorbed + open. Pure: it is told the figures and says what is left.

What an engine counted after it was last asked, before it died, nobody can know. Then what was metered is the best figure there is: it
counts as produced, and how far the counters fell short is told as `lost`, never netted against anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from billing.engine_counters import EngineRun
from billing.engine_instances import NO_TOKENS, CounterPair


@dataclass(frozen=True, slots=True)
class Metered:
    """What requests are accounted for with, by the same two kinds of token."""

    billed: CounterPair = NO_TOKENS
    absorbed: CounterPair = NO_TOKENS
    open: CounterPair = NO_TOKENS

    @property
    def total(self) -> CounterPair:
        """All of it."""
        return self.billed + self.absorbed + self.open


@dataclass(frozen=True, slots=True)
class EpochBalance:
    """One epoch of one instance. `has_counters` is false where there is nothing to compare with; the residual is 0 there."""

    instance: str
    epoch: str
    produced: CounterPair
    metered: Metered
    has_counters: bool
    lost: CounterPair

    @property
    def residual(self) -> CounterPair:
        """What the engine counted beyond what is accounted for; negative where more is accounted for than it counted."""
        return self.produced - self.metered.total


def balance_epoch(
    instance: str, epoch: str, runs: Sequence[EngineRun], metered: Metered, *, unreachable: bool
) -> EpochBalance:
    """`runs` are those of this epoch, in order. `unreachable`: the engine should answer now and does not."""
    total = metered.total
    if runs and all(run.state == "no_counters" for run in runs):
        return EpochBalance(instance, epoch, total, metered, has_counters=False, lost=NO_TOKENS)
    counted = sum((run.produced for run in runs), NO_TOKENS)
    cut_off = not runs or unreachable or any(run.state == "closed" and not run.exact for run in runs)
    produced = counted.at_least(total) if cut_off else counted
    return EpochBalance(instance, epoch, produced, metered, has_counters=True, lost=produced - counted)
