"""What a reclaim would do. Pure: it works on a pool's position and on its open requests; it reads and changes
nothing.

From the deadline on the machines are gone from the pool. They drain before it: for as long as a request may
last, but not while the rest would not cover what is signed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from billing.contracts.position import Holding, Position, Taken, describe, worsened
from billing.contracts.timeline import FOREVER_MS, Span, Timeline
from billing.reclaims.cuts import Cut, shortage_by, worst_cuts
from billing.reclaims.occupancy import OccupiedInstance, RunningRequest, count_classes
from billing.reclaims.store import Use
from billing.refusals import Conflict, Invalid

# The longest time of a request: what begins before it may finish.
DRAIN_LEAD_MS: Final = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimOrder:
    """What was ordered. `chosen`, `broken`: the plan that the operator was shown and confirmed: these
    instances, and no more broken than this.
    """

    pool: str
    instances: int
    use: Use
    by_ms: int
    breaks: bool = False
    chosen: tuple[str, ...] | None = None
    broken: tuple[Span, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingCapacity:
    """What the pool has and owes over a time, in mu per second. `machines`: those that it keeps. `held_mu_s`:
    what is sold, with its bursts.
    """

    from_ms: int
    until_ms: int
    machines: int
    capacity_mu_s: int
    reserved_mu_s: int
    held_mu_s: int

    @property
    def free_mu_s(self) -> int:
        """What may still be sold, with a burst of a second."""
        return max(0, self.capacity_mu_s - self.held_mu_s)

    @property
    def short_mu_s(self) -> int:
        """What is held, bursts included, beyond what there is."""
        return max(0, self.held_mu_s - self.capacity_mu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimPlan:
    """`leaving` instances drain from `drain_from_ms` on: at once (`drains_now`), or later; then they are
    chosen again unless they were ordered by name. In `cells_ready` an instance that stays takes new requests;
    `not_running` machines run nothing and simply leave. `broken`: when, and by how much at most, contracts
    would miss what was signed; `cuts`: what each cut contract is left with. `others_before_mu_s`,
    `others_after_mu_s`: the capacity of on-demand and flex at the deadline, without and with the reclaim.
    """

    order: ReclaimOrder
    drain_from_ms: int
    leaving: tuple[OccupiedInstance, ...]
    cells_ready: frozenset[str]
    not_running: int
    left: tuple[RemainingCapacity, ...]
    holding: tuple[Holding, ...]
    run_out: tuple[Holding, ...]
    broken: tuple[Span, ...]
    cuts: Mapping[str, Cut]
    others_before_mu_s: int
    others_after_mu_s: int
    drains_now: bool

    @property
    def requests(self) -> tuple[RunningRequest, ...]:
        """The open requests of the leaving instances: each must have ended by the deadline."""
        return tuple(request for each in self.leaving for request in each.requests)

    def resumes(self, request: RunningRequest) -> bool:
        """Whether this request is preempted and resumes on another instance."""
        return request.resumes_in(self.cells_ready)

    @property
    def open_by_class(self) -> dict[str, int]:
        """How many of them there are of each class."""
        return count_classes(self.requests)

    @property
    def refusal(self) -> str | None:
        """Why it is refused: it would break contracts and may not."""
        if self.order.breaks or not self.broken:
            return None
        first, more = self.broken[0], ""
        if len(self.broken) > 1:
            worst = max(self.broken, key=lambda span: span.value)
            more = f" That is one of {len(self.broken)} such times; the worst is {describe(worst)}."
        return (
            f"It would break what is signed in pool {self.order.pool!r}: {describe(first)}.{more} "
            "Give notice first, take fewer or later, or break it knowingly."
        )


def draw_up(
    order: ReclaimOrder,
    position: Position,
    occupied: Sequence[OccupiedInstance],
    away: int,
    now_ms: int,
    breaking: Sequence[Taken] = (),
) -> ReclaimPlan:
    """The plan for a pool as it is now, of which `away` machines have drained for other reclaims; `breaking`
    reclaims already cut its contracts. Raises Invalid, Conflict for machines that do not exist; the reader of
    the plan decides whether it may break a contract.
    """
    check_there(order, position)
    taken = Taken(order.instances, order.by_ms)
    after = with_taken(position, taken)
    leaving, not_running = choose(occupied, order.instances, position.instances - away)
    at_deadline = position.reserved().at(order.by_ms)
    machines = [machines_over_time(each).at(order.by_ms) for each in (position, after)]
    before_mu_s, after_mu_s = (
        max(0, count * (position.capacity_mu_s or 0) - at_deadline) for count in machines
    )
    from_ms = drain_from_ms(position, order.instances, order.by_ms, now_ms)
    return ReclaimPlan(
        order=order,
        drain_from_ms=from_ms,
        leaving=leaving,
        cells_ready=frozenset(each.cell for each in occupied if each.ready and each not in leaving),
        not_running=not_running,
        left=tuple(left_over_time(after, order.by_ms)),
        holding=tuple(held for held in position.holdings if held.ends_ms > order.by_ms),
        run_out=tuple(held for held in position.holdings if held.ends_ms <= order.by_ms),
        broken=tuple(worsened(position, after, order.by_ms)),
        cuts=worst_cuts(position.holdings, shortage_by(after, [*breaking, taken]), order.by_ms),
        others_before_mu_s=before_mu_s,
        others_after_mu_s=after_mu_s,
        drains_now=from_ms <= now_ms,
    )


def check_there(order: ReclaimOrder, position: Position) -> None:
    """Raises Invalid, or Conflict if the pool does not own so many machines from the deadline on."""
    if order.instances < 1:
        raise Invalid("How many? At least one instance.", param="instances")
    if position.instances == 0:
        message = (
            f"Pool {order.pool!r} has no machines on record: `taas pool set {order.pool} --instances "
            "N` says how many it has."
        )
        raise Conflict(message, param="instances", code="not_so_many")
    at_least = machines_over_time(position).least(order.by_ms)
    if order.instances > at_least:
        left = (
            ""
            if at_least == position.instances
            else f", and from then on {at_least} of them: others have the rest"
        )
        message = f"Pool {order.pool!r} has {position.instances} machines{left}."
        raise Conflict(message, param="instances", code="not_so_many")


def choose(
    occupied: Sequence[OccupiedInstance], instances: int, machines: int
) -> tuple[tuple[OccupiedInstance, ...], int]:
    """The instances that leave, first those whose leaving harms least, and how many machines that run nothing
    leave with them. `machines` is what the pool has now.
    """
    count = running_needed(occupied, instances, machines)
    ranked = sorted(occupied, key=lambda each: (each.ready, *each.harm, each.instance))
    return tuple(ranked[:count]), instances - count


def running_needed(occupied: Sequence[OccupiedInstance], instances: int, machines: int) -> int:
    """How many running instances must leave: machines that run nothing leave before them."""
    return max(0, min(instances, len(occupied) - (machines - instances)))


def drain_from_ms(position: Position, instances: int, by_ms: int, now_ms: int) -> int:
    """From when on so many may take nothing new: before that the rest would not cover what is signed. No
    later than the deadline.
    """
    earliest_ms = max(now_ms, by_ms - DRAIN_LEAD_MS)
    if earliest_ms >= by_ms:
        return by_ms
    serving = position.serving(now_ms)
    uncovered = worsened(
        serving, with_taken(serving, Taken(instances, earliest_ms, by_ms)), earliest_ms, by_ms
    )
    return uncovered[-1].until_ms if uncovered else earliest_ms


def with_taken(position: Position, taken: Taken) -> Position:
    """The same pool without these machines."""
    return replace(position, taken=(*position.taken, taken))


def machines_over_time(position: Position) -> Timeline:
    """How many machines it has, less those that others have."""
    taken = [Span(each.from_ms, each.until_ms, -each.instances) for each in position.taken]
    return Timeline.total([Span(0, FOREVER_MS, position.instances), *taken])


def left_over_time(position: Position, from_ms: int, until_ms: int = FOREVER_MS) -> list[RemainingCapacity]:
    """What it has and owes, at each change."""
    lines = machines_over_time(position), position.capacity(), position.reserved(), position.held()
    moments = {at_ms for line in lines for at_ms, _ in line.points if from_ms < at_ms < until_ms}
    edges = [from_ms, *sorted(moments), until_ms]
    machines, capacity, reserved, held = lines
    return [
        RemainingCapacity(
            from_ms=start_ms,
            until_ms=end_ms,
            machines=machines.at(start_ms),
            capacity_mu_s=capacity.at(start_ms),
            reserved_mu_s=reserved.at(start_ms),
            held_mu_s=held.at(start_ms),
        )
        for start_ms, end_ms in pairwise(edges)
    ]
