"""The balance of one start of an engine: produced = billed + absorbed + open. Pure: it is given the figures
and says what is left.

`produced` is what the engine counted, `open` what requests without an event yet explain. Of an engine that
counts its requests each of them is known in the very moment of the counters, so that nothing has to stand
still for the balance to be exact. Of another one an open request explains what lies between its last
checkpoint and all that it can produce. What an engine counted after it was last asked, before it died, nobody
can know: what is metered beyond counts as produced, and how far the counters fell short is told as `lost`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from billing.wire.tokens import NO_TOKENS, CounterPair


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBalance:
    """One epoch of one instance. `has_counters` is false where there is nothing to compare with; the residual
    is 0 there. `unexplained`: requests of which the engine speaks and nobody else does.
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
        """What the engine counted beyond what is accounted for; negative where more is accounted for than
        it counted.
        """
        return self.produced - self.metered.total


@dataclass(frozen=True, slots=True)
class Produced:
    """What one epoch of an engine has produced: by the counters of all its runs, and beyond them. `cut_off`:
    of a run that died, or does not answer now, nothing is known but its last counters; `uncounted`: it has
    none.
    """

    counted: CounterPair = NO_TOKENS
    lost: CounterPair = NO_TOKENS
    cut_off: bool = False
    uncounted: bool = False


@dataclass(frozen=True, slots=True)
class WithoutEvent:
    """Requests of one epoch that have no event in SQL. `counts`: as their engine says; `explained`: those of
    which somebody else knows; `forgotten`: what others have produced that are on their way to SQL and of
    which the engine speaks no more.
    """

    counts: Mapping[str, CounterPair]
    explained: Collection[str]
    forgotten: CounterPair = NO_TOKENS


def balance_by_request(
    instance: str, epoch: str, produced: Produced, recorded: Metered, without: WithoutEvent
) -> EpochBalance:
    """Of an engine that counts its requests. `recorded`: what had an event before the engine was asked."""
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
    """Of an engine that does not count its requests. `metered.open` is what open requests had produced at
    their last checkpoints, `room` what they can have produced since.
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
