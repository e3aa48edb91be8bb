"""What a pool would earn and cost over a coming time, if work went on as it was of late. Pure.

Each contract is used in the same part of its rate as of late, as far as it is there; requests without a
contract ask as much as of late, and get what contracts leave of the machines. A unit of work earns what it
earned of late.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Final

from billing.contracts.position import Holding, Position
from billing.contracts.timeline import Timeline
from billing.economics.division import divided
from billing.economics.machine_time import PoolHistory, machine_time
from billing.economics.months import Held, PoolMonth, Used
from billing.reclaims.cuts import cut_pro_rata

_MS: Final = 1000
_NONE: Final = Fraction(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The work of one kind of tenants under one contract, or none, of late. `units`: under a contract the
    part of its rate that was used, else mu per second. `earned`, `listed`: pico-dollars for each mu.
    `makers`: likewise, what models' makers get as shares of that, and `makers_tokens` by prices of their own;
    `makers_capacity`: the part that they get of what a contract's capacity costs.
    """

    use: str
    units: Fraction
    earned: Fraction = _NONE
    listed: Fraction | None = None
    makers: Fraction = _NONE
    makers_tokens: Fraction = _NONE
    makers_capacity: Fraction = _NONE


@dataclass(frozen=True, slots=True)
class CapacityRate:
    """What capacity costs on average over a time, and what is given back for what is short of it: in
    pico-dollars for each mu_ms.
    """

    price: Fraction
    credit: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What requests at providers earned and cost of late, in pico-dollars a ms."""

    use: str
    earned: Fraction
    cost: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOutlook:
    """One pool as it stands. `held`: by contract what was asked under it; one that was not used has none.
    `capacity`: by contract, what that costs. `uses`: of contracts.
    """

    history: PoolHistory
    position: Position
    uses: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, Asked] = field(default_factory=dict)
    shared: Sequence[Asked] = ()
    elsewhere: Sequence[Elsewhere] = ()
    capacity: Mapping[str, CapacityRate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What would be otherwise: prices and work as parts of what they were of late; or the part of what the
    machines can do that is used.
    """

    price: Fraction = Fraction(1)
    work: Fraction = Fraction(1)
    utilization: Fraction | None = None


AS_OF_LATE: Final = Demand()


def expected(pool: PoolOutlook, from_ms: int, until_ms: int, demand: Demand = AS_OF_LATE) -> PoolMonth:
    """Of [from, until)."""
    own, taken = machine_time(pool.history, from_ms, until_ms)
    total: defaultdict[str, int] = defaultdict(int)
    short: defaultdict[str, int] = defaultdict(int)
    used: defaultdict[str, Fraction] = defaultdict(Fraction)
    shared = _NONE
    for length_ms, rates, cuts, machine_mu_s in _parts(pool, from_ms, until_ms):
        working = _NONE
        for name, rate in rates.items():
            asked = pool.held[name].units * demand.work if name in pool.held else _NONE
            mu_s = min(asked * rate, Fraction(rate - cuts[name]))
            total[name] += rate * length_ms
            short[name] += cuts[name] * length_ms
            used[name] += mu_s * length_ms
            working += mu_s
        wanted = sum((each.units for each in pool.shared), _NONE) * demand.work
        if demand.utilization is not None:
            wanted = demand.utilization * machine_mu_s - working
        shared += min(max(_NONE, wanted), max(_NONE, machine_mu_s - working)) * length_ms
    capacity = sum(time.capacity for time in own.values())
    lent = _lent(total, used, round(shared) - (capacity - sum(total.values())))
    held = {name: _held(pool, name, total[name], used[name], short[name], demand) for name in sorted(total)}
    return PoolMonth(
        own,
        taken,
        held=[replace(each, lent_mu=lent.get(name, 0) // _MS) for name, each in held.items()],
        used=[
            *(
                _used(pool.held[name], used[name], demand, each)
                for name, each in held.items()
                if name in pool.held
            ),
            *_shared(pool.shared, shared, demand),
            *(_elsewhere(each, until_ms - from_ms, demand) for each in pool.elsewhere),
        ],
    )


def _parts(
    pool: PoolOutlook, from_ms: int, until_ms: int
) -> Iterator[tuple[int, dict[str, int], dict[str, int], int]]:
    """Times in which nothing changes: their length, the rate of each contract, what it is short of, and what
    the pool's own machines can do.
    """
    position = pool.position
    lines = {held.contract_id: Timeline.total(held.spans()) for held in position.holdings}
    shortage = position.shortage()
    moments = {at_ms for line in (*lines.values(), shortage) for at_ms, _ in line.points}
    moments |= {edge for each in position.taken for edge in (each.from_ms, each.until_ms)}
    inner = sorted(at_ms for at_ms in moments if from_ms < at_ms < until_ms)
    for start_ms, end_ms in pairwise([from_ms, *inner, until_ms]):
        rates = {name: rate for name, line in lines.items() if (rate := line.at(start_ms))}
        away = sum(each.instances for each in position.taken if each.from_ms <= start_ms < each.until_ms)
        machines = max(0, position.instances - away)
        cuts = cut_pro_rata(rates, shortage.at(start_ms))
        yield end_ms - start_ms, rates, cuts, machines * (position.capacity_mu_s or 0)


def _lent(total: Mapping[str, int], used: Mapping[str, Fraction], wanted: int) -> dict[str, int]:
    """What of each contract others use: so much in all, as far as the contracts leave it idle."""
    idle = {name: max(0, whole - round(used[name])) for name, whole in total.items()}
    lent = min(wanted, sum(idle.values()))
    return divided(lent, idle) if lent > 0 else {}


def _held(pool: PoolOutlook, name: str, total: int, used: Fraction, short: int, demand: Demand) -> Held:
    rate = pool.capacity.get(name, CapacityRate(_NONE, _NONE))
    return Held(
        contract=name,
        use=pool.uses[name],
        total=total,
        used_mu=round(used / _MS) if name in pool.held else None,
        short_mu=round(Fraction(short, _MS)),
        capacity_picousd=round(rate.price * demand.price * total),
        credits=round(rate.credit * demand.price * short),
    )


def _shared(some: Sequence[Asked], mu_ms: Fraction, demand: Demand) -> Iterator[Used]:
    asked = sum((each.units for each in some), _NONE)
    for each in some:
        yield _used(each, mu_ms * each.units / asked if asked else _NONE, demand)


def _used(asked: Asked, mu_ms: Fraction, demand: Demand, held: Held | None = None) -> Used:
    units_mu = round(mu_ms / _MS)
    contract, capacity = ("", 0) if held is None else (held.contract, held.capacity_picousd - held.credits)
    makers = (asked.makers * demand.price + asked.makers_tokens) * units_mu
    return Used(
        use=asked.use,
        model="",
        contract=contract,
        units_mu=units_mu,
        list_picousd=None if asked.listed is None else round(asked.listed * demand.price * units_mu),
        revenue=round(asked.earned * demand.price * units_mu),
        cost_makers=round(makers + asked.makers_capacity * capacity),
    )


def _elsewhere(each: Elsewhere, length_ms: int, demand: Demand) -> Used:
    earned = round(each.earned * demand.price * demand.work * length_ms)
    cost = round(each.cost * demand.work * length_ms)
    return Used(use=each.use, model="", revenue=earned, revenue_providers=earned, cost_providers=cost)


def with_end(position: Position, contract: str, ends_ms: int) -> Position:
    """As if that contract ended then; one that ends before stays as it is."""

    def ended(held: Holding) -> Holding:
        return replace(held, ends_ms=min(held.ends_ms, ends_ms)) if held.contract_id == contract else held

    return replace(position, holdings=tuple(map(ended, position.holdings)))
