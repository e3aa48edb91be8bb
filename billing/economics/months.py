"""The capacity, the cost and the revenue of one pool over one month, divided among uses, models and
contracts. Pure.

What a pool's own machines cost follows what they could do: a contract bears what it holds, whether it uses it
or not, requests without a contract bear what they use beyond what is lent, and the pool's own use bears what
is idle. Machines in other use are that use's. Work beyond what was calibrated bears nothing more: a pool has
no more than it has.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Final, NamedTuple, Self

from billing.economics.division import divided
from billing.economics.figures import Figures
from billing.moments import HOUR_MS

_MU_MS_PER_MU: Final = 1000
_NO: Final = ""


class Cell(NamedTuple):
    """What figures belong to. No model, no contract: an empty text."""

    use: str
    model: str = _NO
    contract: str = _NO


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTime:
    """Machines over a time. `cost`: pico-dollars an hour × ms; `capacity`: mu_ms, as calibrated;
    `…_unknown_ms`: machine-ms of which that is not known.
    """

    machine_ms: int = 0
    cost: int = 0
    gpu_ms: int = 0
    milliwatt_ms: int = 0
    capacity: int = 0
    cost_unknown_ms: int = 0
    gpus_unknown_ms: int = 0
    power_unknown_ms: int = 0
    capacity_unknown_ms: int = 0

    def __add__(self, other: Self) -> Self:
        names = [each.name for each in fields(self)]
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def figures(self, paid: int, **more: int) -> Figures:
        """As figures; `paid`: its cost in pico-dollars."""

        def known(amount: int, unknown_ms: int) -> int | None:
            return amount if unknown_ms < self.machine_ms else None

        return Figures(
            cost_machines=known(paid, self.cost_unknown_ms),
            machine_ms=self.machine_ms,
            gpu_ms=known(self.gpu_ms, self.gpus_unknown_ms),
            milliwatt_ms=known(self.milliwatt_ms, self.power_unknown_ms),
            cost_unknown_ms=self.cost_unknown_ms,
            gpus_unknown_ms=self.gpus_unknown_ms,
            power_unknown_ms=self.power_unknown_ms,
            capacity_unknown_ms=self.capacity_unknown_ms,
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One contract. `total`: what was signed, in mu_ms. `used_mu` …: by its evidence, None without any.
    `capacity_picousd`: what its tenant owes for it, used or not; `credits`: less that.
    """

    contract: str
    use: str
    total: int
    used_mu: int | None = None
    lent_mu: int | None = None
    short_mu: int | None = None
    capacity_picousd: int = 0
    credits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Requests of one kind of tenants for one model under one contract, or none. `units_mu`: their work on
    machines of ours. `list_picousd`: what that would cost at list prices; None without such a price.
    `makers_of`: what `cost_makers` is of (`PaidFor`).
    """

    use: str
    model: str
    contract: str = _NO
    units_mu: int = 0
    list_picousd: int | None = None
    revenue: int = 0
    revenue_providers: int = 0
    revenue_terms: int = 0
    cost_providers: int | None = None
    cost_makers: int = 0
    makers_of: str | None = None
    cost_unknown_requests: int = 0
    price_unknown_requests: int = 0


@dataclass(frozen=True, slots=True)
class PoolMonth:
    """One pool over one month, or a part of it. `own`, `taken`: by use, its own machines and those that
    reclaims had.
    """

    own: Mapping[str, MachineTime]
    taken: Mapping[str, MachineTime]
    held: Sequence[Held] = ()
    used: Sequence[Used] = ()

    @property
    def list_price(self) -> Fraction | None:
        """What a mu_ms earns at list prices with the tokens of this month's requests; None if none says."""
        priced = [each for each in self.used if each.list_picousd is not None and each.units_mu]
        units = sum(each.units_mu for each in priced)
        owed = sum(each.list_picousd or 0 for each in priced)
        return Fraction(owed, units * _MU_MS_PER_MU) if units else None


def share_out(pool: PoolMonth, list_price: Fraction | None) -> dict[Cell, Figures]:
    """The figures of each cell; together they are the pool's. `list_price`: of a mu_ms."""
    found: defaultdict[Cell, Figures] = defaultdict(Figures)
    own = sum(pool.own.values(), MachineTime())
    paid_own, paid_taken = paid(pool.own, pool.taken)
    for cell, figures in _divided_over(own, _places(pool, own.capacity), pool.own, paid_own).items():
        found[cell] += figures
    for use, time in pool.taken.items():
        found[Cell(use)] += time.figures(paid_taken[use], other=time.capacity)
    for held in pool.held:
        found[Cell(held.use, contract=held.contract)] += Figures(
            revenue_capacity=held.capacity_picousd,
            credits=held.credits,
            commitment_total=held.total,
            commitment_used_mu=held.used_mu,
            commitment_short_mu=held.short_mu,
        )
    for used in pool.used:
        found[Cell(used.use, used.model, used.contract)] += Figures(
            revenue_tokens=used.revenue,
            revenue_providers=used.revenue_providers,
            revenue_terms=used.revenue_terms,
            cost_providers=used.cost_providers,
            cost_makers=used.cost_makers,
            used_mu=used.units_mu,
            cost_unknown_requests=used.cost_unknown_requests,
            price_unknown_requests=used.price_unknown_requests,
        )
    if list_price is not None:
        for cell, worth in _at_list(found, list_price).items():
            found[cell] += Figures(list_picousd=worth)
    return dict(found)


def paid(*machines: Mapping[str, MachineTime]) -> list[dict[str, int]]:
    """What these cost, in pico-dollars: rounded once in all, half to even, and divided."""
    weights = {
        (number, use): time.cost for number, times in enumerate(machines) for use, time in times.items()
    }
    whole = round(Fraction(sum(weights.values()), HOUR_MS))
    parts = divided(whole, weights) if whole else weights.fromkeys(weights, 0)
    return [{use: parts[number, use] for use in times} for number, times in enumerate(machines)]


def _at_list(found: Mapping[Cell, Figures], list_price: Fraction) -> dict[Cell, int]:
    weights = {cell: figures.calibrated for cell, figures in found.items()}
    whole = sum(weights.values())
    return divided(round(whole * list_price), weights) if whole else {}


def _places(pool: PoolMonth, capacity: int) -> dict[Cell, Figures]:
    """What of the own machines' capacity each cell has: sold, lent or idle. Their sum is the capacity."""
    places: defaultdict[Cell, Figures] = defaultdict(Figures)
    signed = {held.contract: held.total for held in pool.held}
    if sum(signed.values()) > capacity:
        signed = divided(capacity, signed)
    lent_all = 0
    for held in pool.held:
        lent = min((held.lent_mu or 0) * _MU_MS_PER_MU, signed[held.contract])
        lent_all += lent
        places[Cell(held.use, contract=held.contract)] += Figures(lent=lent)
        for model, part in _by_model(pool, held.contract, signed[held.contract] - lent).items():
            places[Cell(held.use, model, held.contract)] += Figures(sold=part)
    free = capacity - sum(signed.values())
    others: defaultdict[Cell, int] = defaultdict(int)
    for used in pool.used:
        if not used.contract and used.units_mu:
            others[Cell(used.use, used.model)] += used.units_mu * _MU_MS_PER_MU
    shared = min(max(0, sum(others.values()) - lent_all), free)
    if shared:
        for cell, part in divided(shared, others).items():
            places[cell] += Figures(sold=part)
    if free > shared:
        idle = divided(free - shared, {use: time.capacity for use, time in pool.own.items()})
        for use, part in idle.items():
            places[Cell(use)] += Figures(idle=part)
    return dict(places)


def _by_model(pool: PoolMonth, contract: str, sold: int) -> dict[str, int]:
    """What a contract holds by the models that it was used for; what was not used has none."""
    used: defaultdict[str, int] = defaultdict(int)
    for each in pool.used:
        if each.contract == contract and each.units_mu:
            used[each.model] += each.units_mu * _MU_MS_PER_MU
    unused = sold - sum(used.values())
    if unused >= 0:
        used[_NO] += unused
        return used
    return divided(sold, used)


def _divided_over(
    own: MachineTime,
    places: Mapping[Cell, Figures],
    by_use: Mapping[str, MachineTime],
    paid_own: Mapping[str, int],
) -> dict[Cell, Figures]:
    """The own machines' time and cost, in proportion to the capacity of each place; without a calibration
    they are the own use's.
    """
    weights = {cell: figures.calibrated for cell, figures in places.items()}
    if not any(weights.values()):
        return {Cell(use): time.figures(paid_own[use]) for use, time in by_use.items()}
    whole = own.figures(sum(paid_own.values()))
    parts = {
        each.name: divided(amount, weights)
        for each in fields(whole)
        if (amount := getattr(whole, each.name)) is not None
    }
    return {
        cell: figures + Figures(**{name: part[cell] for name, part in parts.items()})
        for cell, figures in places.items()
    }
