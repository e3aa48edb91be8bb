"""The figures of a line of the report: whole numbers that add up. Pure.

None means that nothing was reported, and adds nothing. Money is in pico-dollars, capacity in mu_ms (mu per
second × ms: 3.6 × 10^9 are a unit-hour), time of machines in machine-ms.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """`revenue_terms`: what invoices add by their tenants' terms: minimum commitments, less volume discounts,
    and less what credit notes give back.
    `revenue_providers`: the part of the revenue from tokens that providers produced; it is no machine's.
    `sold`: what contracts hold and others do not use, and what requests without a contract use; `lent`: what
    contracts hold and others use; `idle`: the rest; `other`: of machines in other use. Together they are all
    that was calibrated. `used_mu`: work of requests. `commitment_…`: of contracts, as signed, as used, and
    what they were short of. `list_picousd`: what all that was calibrated would earn at list prices.
    `…_unknown`: how much of it has no such figure.
    """

    revenue_tokens: int = 0
    revenue_capacity: int = 0
    revenue_terms: int = 0
    revenue_providers: int = 0
    credits: int = 0
    cost_machines: int | None = None
    cost_providers: int | None = None
    cost_makers: int = 0
    machine_ms: int = 0
    gpu_ms: int | None = None
    # Watts, overhead included, × 1000 × ms.
    milliwatt_ms: int | None = None
    sold: int = 0
    lent: int = 0
    idle: int = 0
    other: int = 0
    used_mu: int = 0
    commitment_total: int | None = None
    commitment_used_mu: int | None = None
    commitment_short_mu: int | None = None
    list_picousd: int | None = None
    cost_unknown_ms: int = 0
    gpus_unknown_ms: int = 0
    power_unknown_ms: int = 0
    capacity_unknown_ms: int = 0
    cost_unknown_requests: int = 0
    price_unknown_requests: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(**_sums(self, other))

    @classmethod
    def total(cls, some: Iterable[Self]) -> Self:
        """The sum of these, empty for none."""
        found = cls()
        for each in some:
            found += each
        return found

    @property
    def calibrated(self) -> int:
        """All that was calibrated, in mu_ms."""
        return self.sold + self.lent + self.idle + self.other

    @property
    def revenue(self) -> int:
        """What tenants owe, less credits."""
        return self.revenue_tokens + self.revenue_capacity + self.revenue_terms - self.credits

    @property
    def cost(self) -> int | None:
        """What is known of it; None where nothing is."""
        return _plus(_plus(self.cost_machines, self.cost_providers), self.cost_makers or None)


_NAMES = tuple(each.name for each in fields(Figures))


def _sums(one: Figures, other: Figures) -> dict[str, Any]:
    return {name: _plus(getattr(one, name), getattr(other, name)) for name in _NAMES}


def _plus(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
