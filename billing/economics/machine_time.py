"""How long machines of a pool had which use, what they cost and could do meanwhile. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from billing.contracts.timeline import FOREVER_MS, Span, Timeline
from billing.economics.machines import MachineTerms, at
from billing.economics.months import MachineTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """Machines that a reclaim has in [from, until)."""

    use: str
    instances: int
    from_ms: int
    until_ms: int = FOREVER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHistory:
    """One pool over all time. `sizes`: how many machines it had until each moment, the last one for good;
    `measured`: what one could do, in mu per second, from each moment on; `own_use`: of the machines that no
    reclaim has, where `terms` do not say.
    """

    pool: str
    own_use: str
    sizes: Sequence[tuple[int, int]]
    measured: Sequence[tuple[int, int]] = ()
    terms: Sequence[MachineTerms] = ()
    away: Sequence[Away] = ()

    def moments(self) -> set[int]:
        """When something changes."""
        return {
            *(until_ms for until_ms, _ in self.sizes), *(from_ms for from_ms, _ in self.measured),
            *(each.from_ms for each in self.terms), *(each.from_ms for each in self.away),
            *(each.until_ms for each in self.away),
        }  # fmt: skip

    def machines_at(self, moment_ms: int) -> int:
        """How many it has then, those in other use included."""
        return next((count for until_ms, count in self.sizes if moment_ms < until_ms), 0)


_NO_TERMS: Final = MachineTerms(pool="", from_ms=0)


def machine_time(
    history: PoolHistory, from_ms: int, until_ms: int
) -> tuple[dict[str, MachineTime], dict[str, MachineTime]]:
    """Of [from, until), by use: the pool's own machines, and those that reclaims had."""
    own: defaultdict[str, MachineTime] = defaultdict(MachineTime)
    taken: defaultdict[str, MachineTime] = defaultdict(MachineTime)
    uses = {each.use for each in history.away}
    lines = {
        use: Timeline.total(
            Span(each.from_ms, each.until_ms, each.instances) for each in history.away if each.use == use
        )
        for use in sorted(uses)
    }
    inner = sorted(each for each in history.moments() if from_ms < each < until_ms)
    for start_ms, end_ms in pairwise([from_ms, *inner, until_ms]):
        terms = at(history.terms, start_ms) or _NO_TERMS
        capacity = [mu_s for since_ms, mu_s in history.measured if since_ms <= start_ms]
        mu_s = capacity[-1] if capacity else None
        away = {use: line.at(start_ms) for use, line in lines.items()}
        # A pool that was made smaller may have lent more than it now has.
        left = max(0, history.machines_at(start_ms) - sum(away.values()))
        own[terms.use or history.own_use] += _time(left * (end_ms - start_ms), terms, mu_s)
        for use, count in away.items():
            if count:
                taken[use] += _time(count * (end_ms - start_ms), terms, mu_s)
    return dict(own), dict(taken)


def _time(machine_ms: int, terms: MachineTerms, mu_s: int | None) -> MachineTime:
    watts = None if terms.watts is None else terms.watts * terms.overhead_permille

    def known(each: int | None) -> tuple[int, int]:
        return (0, machine_ms) if each is None else (each * machine_ms, 0)

    (cost, no_cost), (gpus, no_gpus), (power, no_power), (capacity, no_capacity) = map(
        known, (terms.cost_picousd_hour, terms.gpus, watts, mu_s)
    )
    return MachineTime(
        machine_ms=machine_ms, cost=cost, gpu_ms=gpus, milliwatt_ms=power, capacity=capacity,
        cost_unknown_ms=no_cost, gpus_unknown_ms=no_gpus, power_unknown_ms=no_power,
        capacity_unknown_ms=no_capacity,
    )  # fmt: skip
