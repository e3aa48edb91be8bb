"""How many instances a pool should have. Pure.

As many as its contracts need, whatever the operator's maximum, and as many as what runs and waits needs,
within the operator's bounds and the machines of the pool. More are wanted at once, fewer only when none of
the last minutes needed more: a start takes minutes.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from billing.contracts.position import Position

# Contracts that begin within this time count already: a large engine takes as long to start.
LEAD_MS: Final = 15 * 60_000
# Instances are only given up after the load has been lower for this long.
CALM_MS: Final = 5 * 60_000
# Slots of an instance that has not been calibrated.
SLOTS_GUESSED: Final = 16
# The part of an instance's slots that should be in use: the rest takes what comes while another one starts.
_BUSY_PERMILLE: Final = 800


class Why(StrEnum):
    """What decides. `contracts`: what is signed. `load`: what runs and waits. `calm`: the load of the last
    minutes. `woken`: requests wait for a pool that has no instance. `minimum`, `maximum`: the operator's
    bounds. `machines`: the pool has no more.
    """

    CONTRACTS = "contracts"
    LOAD = "load"
    CALM = "calm"
    WOKEN = "woken"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    MACHINES = "machines"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The operator's, in instances."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Load:
    """Of a pool: `sequences` that run or wait; those of class flex, which have idle capacity only, count as
    one if there are no others, because an empty pool has none. `slots` of one instance; and whether requests
    wait for an instance to be started.
    """

    sequences: int
    slots: int
    woken: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """So many instances, and why."""

    instances: int
    why: Why


@dataclass(slots=True)
class Recent:
    """What the load needed in the last minutes."""

    _needs: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, now_ms: int, instances: int) -> None:
        """It needs so many now."""
        while self._needs and (self._needs[0][0] <= now_ms - CALM_MS):
            self._needs.popleft()
        while self._needs and self._needs[-1][1] <= instances:
            self._needs.pop()
        self._needs.append((now_ms, instances))

    @property
    def most(self) -> int:
        """The most of them."""
        return self._needs[0][1] if self._needs else 0


def needed_by_contracts(position: Position, now_ms: int) -> int:
    """The fewest instances that hold what is signed, from now until those of new contracts have started, with
    headroom and what is set aside. 0 if nothing is signed, as in a pool that has not been calibrated.
    """
    held = position.held()
    if not position.capacity_mu_s or all(span.value == 0 for span in held.spans(now_ms, now_ms + LEAD_MS)):
        return 0
    alone = replace(position, taken=())

    def is_short(count: int) -> bool:
        over = replace(alone, instances=count).overheld()
        return any(span.value for span in over.spans(now_ms, now_ms + LEAD_MS))

    # What is signed fits the pool, unless its machines were taken away; twice as many are enough then.
    most = max(1, position.instances)
    while is_short(most):
        most *= 2
    least = 1
    while least < most:
        middle = (least + most) // 2
        least, most = (middle + 1, most) if is_short(middle) else (least, middle)
    return least


def needed_by_load(load: Load) -> int:
    """The fewest instances that are busy to four fifths at most."""
    need = -(-load.sequences * 1000 // (load.slots * _BUSY_PERMILLE))
    return max(need, 1) if load.woken else need


def decide(*, bounds: Bounds, machines: int, contracts: int, load: Load, recent: int) -> Decision:
    """`machines`: what the pool has, less those of other uses; `contracts`, `recent`: what they need."""
    now = needed_by_load(load)
    wanted = Decision(now, Why.WOKEN if load.woken and now == 1 else Why.LOAD)
    if recent > now:
        wanted = Decision(recent, Why.CALM)
    if wanted.instances > bounds.most:
        wanted = Decision(bounds.most, Why.MAXIMUM)
    if wanted.instances <= bounds.least:
        wanted = Decision(bounds.least, Why.MINIMUM)
    if contracts >= max(1, wanted.instances):
        wanted = Decision(contracts, Why.CONTRACTS)
    return wanted if wanted.instances <= machines else Decision(machines, Why.MACHINES)


def taken_now(position: Position, now_ms: int) -> int:
    """Machines of the pool that are in other use, or are about to be."""
    taken: Sequence[int] = [
        each.instances for each in position.taken if each.from_ms <= now_ms < each.until_ms or each.drains
    ]
    return sum(taken)
