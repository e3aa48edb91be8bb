"""Whether a reclaim still matches the plan that was shown: the same instances, and no more broken. Pure.

Open streams are not compared: they come and go while somebody reads.
"""

from collections.abc import Collection, Sequence

from billing.contracts.position import describe
from billing.contracts.timeline import Span
from billing.reclaims.occupancy import OccupiedInstance
from billing.reclaims.plan import ReclaimOrder, running_needed
from billing.refusals import Conflict


class PlanChanged(Conflict):
    """The plan is not the one that was shown."""

    code = "plan_changed"

    def __init__(self, amiss: str) -> None:
        super().__init__(
            f"{amiss} Nothing was taken: look at what it would do now, and order that.", param="chosen"
        )


def choose_named(
    occupied: Sequence[OccupiedInstance], instances: int, machines: int, named: Collection[str]
) -> tuple[tuple[OccupiedInstance, ...], str | None]:
    """The instances of these names, and what is wrong with them, if anything is. `machines` is what the pool
    has now.
    """
    leaving = tuple(each for each in occupied if each.instance in named)
    gone = sorted(set(named) - {each.instance for each in leaving})
    if gone:
        return leaving, f"Not there to be taken any more: {', '.join(gone)}."
    count = running_needed(occupied, instances, machines)
    if len(leaving) != count:
        return (
            leaving,
            f"Of the instances that run now {count} must leave, not the {len(leaving)} that were shown.",
        )
    return leaving, None


def more_broken(order: ReclaimOrder, broken: Sequence[Span]) -> str | None:
    """What would be broken now and was not shown."""
    if order.broken is None:
        return None
    for now in broken:
        if not any(_covers(shown, now) for shown in order.broken):
            return f"It would now break more than was shown: {describe(now)}."
    return None


def _covers(shown: Span, now: Span) -> bool:
    return shown.from_ms <= now.from_ms and now.until_ms <= shown.until_ms and now.value <= shown.value
