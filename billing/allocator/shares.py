"""How much of each instance on-demand and flex may use. Pure arithmetic: it reads no clock and knows neither
Redis nor SQL.

Room is counted in sequences, use in milliunits (mu) per second. A calibration says how many of each an
instance can do.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from billing.wire.instance_entry import EngineLoad

# How long an instance must be strained before it is trusted with less, and calm before it is trusted with
# more. A queue that is seen once may be the moment between two steps of an engine.
_STRAINED_ROUNDS: Final = 2
_CALM_ROUNDS: Final = 3
_KV_FULL: Final = 0.95
_KV_CALM: Final = 0.85
_SHRINK: Final = 0.9
_RECOVER: Final = 0.05
# A contract holder that stops lends most of its share after a few seconds; one that comes back has it at
# once.
_RECENT_MS: Final = 3_000
# Kept free beside reserved requests in flight, so that the next one finds a slot at once.
_GUARD: Final = 0.10
# By how much the part of idle capacity that on-demand is trusted with grows or shrinks each round; and above
# which share of it on-demand counts as using it.
_LENT_MORE: Final = 0.1
_LENT_LESS: Final = 0.1
_IN_USE: Final = 0.8
# Below this part of its rate a contract is idle.
_IDLE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Health:
    """How many sequences an instance is trusted with now, and for how many rounds it has been strained or
    calm.
    """

    sequences: float
    strained: int = 0
    calm: int = 0


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sequences on one instance, by class."""

    reserved: int = 0
    on_demand: int = 0
    flex: int = 0
    # Of on-demand, those that have run for more than two seconds.
    long: int = 0

    @property
    def all(self) -> int:
        """Of every class."""
        return self.reserved + self.on_demand + self.flex


@dataclass(frozen=True, slots=True)
class ReadyInstance:
    """One ready instance."""

    instance: str
    health: Health
    in_flight: InFlight


@dataclass(frozen=True, slots=True)
class ContractUse:
    """A contract: its rate, and its recent use."""

    rate_mu_s: int
    recent_mu_s: float

    @property
    def idle(self) -> bool:
        """Whether it has used nearly nothing recently."""
        return self.recent_mu_s <= self.rate_mu_s * _IDLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One instance's slots: `held` for reserved, `room` for on-demand and flex together, and of `room` at
    most `on_demand` and `flex` for each.

    `preempt`: flex sequences to preempt, for reserved requests or for on-demand requests that wait.
    `measured`: by a calibration, which also says how fast the instance reads prompts.
    """

    instance: str
    sequences: int
    held: int
    room: int
    on_demand: int
    flex: int
    preempt: int
    measured: bool = True


def declared(instance: str, sequences: int, in_flight: InFlight) -> Share:
    """The share of an instance whose slots its operator has declared: a provider. Nothing of it is sold or
    lent, so all classes have the same slots, and nobody is preempted.
    """
    room = max(0, sequences - in_flight.reserved)
    return Share(
        instance=instance,
        sequences=sequences,
        held=sequences - room,
        room=room,
        on_demand=room,
        flex=room,
        preempt=0,
        measured=False,
    )


def corrected(before: Health | None, calibrated: int, load: EngineLoad) -> Health:
    """A tenth less while the engine queues or its cache is full, but at least 1; back to the calibrated
    number in small steps.
    """
    now = min(float(calibrated), before.sequences) if before else float(calibrated)
    strained = load.waiting > 0 or load.kv_usage > _KV_FULL
    calm = load.waiting == 0 and load.kv_usage < _KV_CALM
    strained_rounds = before.strained + 1 if before and strained else int(strained)
    calm_rounds = before.calm + 1 if before and calm else int(calm)
    if load.kv_usage > _KV_FULL or strained_rounds >= _STRAINED_ROUNDS:
        now = max(1.0, now * _SHRINK)
    elif calm_rounds >= _CALM_ROUNDS:
        now = min(float(calibrated), now + calibrated * _RECOVER)
    return Health(now, strained_rounds, calm_rounds)


def recent(before_mu_s: float, used_mu: int, elapsed_ms: int, rate_mu_s: int) -> float:
    """The recent use of a contract, up to its rate. It follows a rise at once, and a fall over some
    seconds.
    """
    if elapsed_ms <= 0:
        return min(before_mu_s, float(rate_mu_s))
    faded = before_mu_s * math.exp(-elapsed_ms / _RECENT_MS)
    return min(float(rate_mu_s), max(faded, used_mu * 1000 / elapsed_ms, 0.0))


def unsold(machines: Sequence[ReadyInstance], holders: Iterable[ContractUse], capacity_mu_s: int) -> float:
    """The part of the instances that is not sold. Never less than a guard, or only contract holders would
    ever be served.
    """
    sold = sum(holder.rate_mu_s for holder in holders) / (capacity_mu_s * len(machines) or 1)
    return min(1.0, max(_GUARD, 1 - sold))


def trusted(before: float, machines: Sequence[ReadyInstance], unsold_part: float) -> float:
    """How much of the idle sold capacity on-demand may use, as a fraction. Its streams cannot be preempted,
    and a contract holder that comes back must have its units within two seconds. So long streams get no more
    than the unsold capacity. While there are fewer, and the granted part is in use, a little more is lent
    each round.
    """
    total = sum(machine.health.sequences for machine in machines)
    kept = total * unsold_part
    long = sum(machine.in_flight.long for machine in machines)
    in_use = sum(machine.in_flight.on_demand for machine in machines)
    if long > kept:
        return 0.0
    may_have = kept + (total - kept) * before
    if in_use < may_have * _IN_USE:
        return max(0.0, before - _LENT_LESS)
    return min(1.0, before + _LENT_MORE) if long <= kept * _IN_USE else before


def divide(
    machines: Sequence[ReadyInstance],
    holders: Iterable[ContractUse],
    capacity_mu_s: int,
    *,
    on_demand_waits: int,
    lending: float = 1.0,
) -> list[Share]:
    """Divide the instances of a cell. `capacity_mu_s`: what one of them can do, as calibrated.
    `on_demand_waits`: waiting requests of that class. `lending`: the result of `trusted`.
    """
    active = [holder for holder in holders if holder.rate_mu_s > 0]
    unsold_part = unsold(machines, active, capacity_mu_s)
    on_demand_part = unsold_part + (1 - unsold_part) * lending
    sequences = {machine.instance: math.floor(machine.health.sequences) for machine in machines}
    total = sum(sequences.values())
    wanted = sum(holder.recent_mu_s for holder in active) / (capacity_mu_s * len(machines) or 1) * total
    # Expected reserved work beyond what is in flight, by recent use, may come to any instance.
    expected = max(0.0, wanted - sum(machine.in_flight.reserved for machine in machines))
    in_use = any(not holder.idle for holder in active)
    divided = []
    for machine in machines:
        most = sequences[machine.instance]
        guard = _guard(most, in_use or machine.in_flight.reserved > 0)
        more = math.ceil(expected * most / total - 1e-9) if total else 0
        held = min(most, machine.in_flight.reserved + more + guard)
        on_demand = max(1, math.ceil(most * on_demand_part - 1e-9))
        divided.append(_Parts(machine, most, held, guard, min(most - held, on_demand)))
    beyond = max(0, on_demand_waits - sum(parts.free for parts in divided))
    shares = []
    for parts in divided:
        wanted = min(beyond, parts.on_demand_may_take - parts.free)
        shares.append(_share(parts, wanted, on_demand_waits=on_demand_waits > 0))
        beyond -= wanted
    return shares


@dataclass(frozen=True, slots=True)
class _Parts:
    """One instance's slots before flex gets any: `held` for reserved, and what on-demand may have."""

    machine: ReadyInstance
    sequences: int
    held: int
    guard: int
    on_demand: int

    @property
    def on_demand_may_take(self) -> int:
        """Slots that on-demand may take beyond those that it has."""
        return max(0, self.on_demand - self.machine.in_flight.on_demand)

    @property
    def free(self) -> int:
        """Those of them that are free."""
        flight = self.machine.in_flight
        return max(
            0, min(self.on_demand_may_take, self.sequences - self.held - flight.on_demand - flight.flex)
        )


def _guard(sequences: int, in_use: bool) -> int:
    """The slots to keep free. None while every contract is idle, so that all of it is lent: a contract
    holder's first request is admitted beyond the room, and between two requests some slot is always free.
    """
    return max(1, math.ceil(sequences * _GUARD)) if in_use else 0


def _share(parts: _Parts, wanted: int, *, on_demand_waits: bool) -> Share:
    """`wanted`: slots to take from flex, for on-demand that waits."""
    sequences, guard, flight = parts.sequences, parts.guard, parts.machine.in_flight
    room = sequences - parts.held
    preempt = 0
    # Reserved requests come and go all the time: half of the guard may be used before a stream is preempted.
    if flight.reserved and (sequences - flight.all) * 2 < guard:
        preempt = max(0, min(flight.flex, flight.all + guard - sequences))
    flex = room
    if on_demand_waits and parts.on_demand_may_take:
        # On-demand comes first: flex keeps only what the waiting on-demand requests do not need.
        over = max(0, flight.on_demand + flight.flex + parts.free + wanted - room)
        flex = max(0, min(room, flight.flex - over))
        if wanted:
            preempt = max(preempt, min(flight.flex, over))
    return Share(
        instance=parts.machine.instance,
        sequences=sequences,
        held=parts.held,
        room=room,
        on_demand=parts.on_demand,
        flex=flex,
        preempt=preempt,
    )


def lent(idle_mu: Mapping[str, int], others_mu: int, unsold_mu: int) -> dict[str, int]:
    """What each contract left idle and others used. Others use unsold capacity first, then each contract's in
    proportion to what it left.
    """
    left = sum(idle_mu.values())
    taken = max(0, min(left, others_mu - unsold_mu))
    return {name: idle * taken // left if left else 0 for name, idle in idle_mu.items()}


def missing(rates_mu_s: Mapping[str, int], ready_mu_s: int) -> dict[str, int]:
    """What each contract would lack now if all contracts used their rates, in mu per second: its proportional
    part of what the ready instances cannot do.
    """
    owed_mu_s = sum(rates_mu_s.values())
    short_mu_s = max(0, owed_mu_s - ready_mu_s)
    return {
        contract_id: rate * short_mu_s // owed_mu_s if short_mu_s else 0
        for contract_id, rate in rates_mu_s.items()
    }
