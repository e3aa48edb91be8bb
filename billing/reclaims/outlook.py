"""The use of a pool's machines over coming quarters: by use, with what is signed and what is free. Pure: it
works on a position and its reclaims.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from billing.contracts.position import Position
from billing.contracts.timeline import Span, Timeline
from billing.moments import month_begins_ms
from billing.reclaims.plan import left_over_time
from billing.reclaims.store import Reclaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A time within one quarter in which nothing changes. `machines`: by use; rates in mu per second."""

    quarter: str
    from_ms: int
    until_ms: int
    machines: dict[str, int]
    capacity_mu_s: int
    signed_mu_s: int
    free_mu_s: int
    short_mu_s: int


def outlook(
    position: Position, reclaims: Sequence[Reclaim], own_use: str, now_ms: int, quarters: int
) -> list[Period]:
    """From now to the end of this many quarters, including this one: a period for each change. What no
    reclaim has taken has the pool's own use.
    """
    edges = quarter_starts(now_ms, quarters)
    uses = {
        use: Timeline.total(
            Span(each.taken.from_ms, each.taken.until_ms, each.instances)
            for each in reclaims
            if each.use == use
        )
        for use in sorted({each.use for each in reclaims})
    }
    periods = []
    for start_ms, end_ms in zip([now_ms, *edges[1:-1]], edges[1:], strict=True):
        for part in left_over_time(position, start_ms, end_ms):
            # One use may follow another while the pool keeps the same number of machines.
            moments = {
                at_ms
                for line in uses.values()
                for at_ms, _ in line.points
                if part.from_ms < at_ms < part.until_ms
            }
            inner = [part.from_ms, *sorted(moments), part.until_ms]
            for from_ms, until_ms in pairwise(inner):
                machines = {own_use: max(0, part.machines)}
                for use, line in uses.items():
                    if count := line.at(from_ms):
                        machines[use] = machines.get(use, 0) + count
                periods.append(
                    Period(
                        quarter=quarter_of(from_ms),
                        from_ms=from_ms,
                        until_ms=until_ms,
                        machines=machines,
                        capacity_mu_s=part.capacity_mu_s,
                        signed_mu_s=part.reserved_mu_s,
                        free_mu_s=part.free_mu_s,
                        short_mu_s=part.short_mu_s,
                    )
                )
    return periods


def quarter_of(moment_ms: int) -> str:
    """`2027-Q1`, by the calendar in UTC."""
    moment = datetime.fromtimestamp(moment_ms / 1000, UTC)
    return f"{moment.year}-Q{(moment.month - 1) // 3 + 1}"


def quarter_starts(now_ms: int, quarters: int) -> list[int]:
    """The start of the quarter that this moment is in, and of the following ones; one more than there are
    quarters.
    """
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    first = moment.year * 4 + (moment.month - 1) // 3
    return [month_begins_ms(index // 4, index % 4 * 3 + 1) for index in range(first, first + quarters + 1)]
