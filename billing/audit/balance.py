"""The balance of one start of an engine: produced = billed + absorbed + open. Pure: it gets the figures and
returns the residual.

`produced` is what the engine counted. `open` is what requests without an event explain. If an engine counts
its requests, their figures are from the same moment as its counters, so the balance is exact while requests
run. For other engines an open request explains anything between its last checkpoint and the most that it can
produce. Nobody knows what an engine counted between its last reading and its death: metered tokens beyond its
counters count as produced, and the difference is reported as `lost`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from billing.wire.tokens import NO_TOKENS, CounterPair


@dataclass(frozen=True, slots=True)
class Metered:
    """Tokens that requests are accounted for with, of the same two kinds."""

    billed: CounterPair = NO_TOKENS
    absorbed: CounterPair = NO_TOKENS
    open: CounterPair = NO_TOKENS

    @property
    def total(self) -> CounterPair:
        """All of it."""
        return self.billed + self.absorbed + self.open


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBalance:
    """One epoch of one instance. `has_counters` false: there is nothing to compare with and the residual is
    0. `unexplained`: requests that only the engine knows.
    """

    instance: str
    epoch: str
    produced: CounterPair
    metered: Metered
    has_counters: bool = True
    lost: CounterPair = NO_TOKENS
    unexplained: Mapping[str, CounterPair] = field(default_factory=dict)

    @property
    def residual(self) -> CounterPair:
        """What the engine counted beyond what is accounted for; negative if more is accounted for."""
        return self.produced - self.metered.total


@dataclass(frozen=True, slots=True)
class Produced:
    """What one epoch of an engine has produced: by the counters of all its runs, and beyond them. `cut_off`:
    a run that died or does not answer, of which only the last counters are known. `uncounted`: it has no
    counters.
    """

    counted: CounterPair = NO_TOKENS
    lost: CounterPair = NO_TOKENS
    cut_off: bool = False
    uncounted: bool = False


@dataclass(frozen=True, slots=True)
class WithoutEvent:
    """Requests of one epoch that have no event in SQL. `counts`: as their engine counts them. `explained`:
    those that are known elsewhere. `forgotten`: what requests on their way to SQL have produced that the
    engine no longer names.
    """

    counts: Mapping[str, CounterPair]
    explained: Collection[str]
    forgotten: CounterPair = NO_TOKENS


def balance_by_request(
    instance: str, epoch: str, produced: Produced, recorded: Metered, without: WithoutEvent
) -> EpochBalance:
    """The balance of an engine that counts its requests. `recorded`: requests that had an event before the
    engine was asked.
    """
    known = sum(
        (count for name, count in without.counts.items() if name in without.explained), without.forgotten
    )
    unexplained = {
        name: count
        for name, count in without.counts.items()
        if name not in without.explained and count != NO_TOKENS
    }
    full = Metered(recorded.billed, recorded.absorbed, known)
    return EpochBalance(
        instance=instance,
        epoch=epoch,
        produced=produced.counted + produced.lost,
        metered=full,
        lost=produced.lost,
        unexplained=unexplained,
    )


def balance_by_bounds(
    instance: str, epoch: str, produced: Produced, metered: Metered, room: CounterPair
) -> EpochBalance:
    """The balance of an engine that does not count its requests. `metered.open`: what open requests had
    produced at their last checkpoints. `room`: what they can have produced since.
    """
    if produced.uncounted:
        return EpochBalance(
            instance=instance, epoch=epoch, produced=metered.total, metered=metered, has_counters=False
        )
    counted = produced.counted.at_least(metered.total) if produced.cut_off else produced.counted
    left = counted - metered.total
    since = CounterPair(_within(left.prompt, room.prompt), _within(left.generation, room.generation))
    full = Metered(metered.billed, metered.absorbed, metered.open + since)
    return EpochBalance(
        instance=instance, epoch=epoch, produced=counted, metered=full, lost=counted - produced.counted
    )


def _within(left: int, room: int) -> int:
    return max(0, min(left, room))
