"""The answers about machines and what they earn."""

from pydantic import Field

from billing.api.answer import Answer, Decimal, Usd, Utc
from billing.reclaims.store import Use


class MachineTermsAnswer(Answer):
    """Of each machine of a pool from then on. Null: not known; `use`: as its models' visibility says. `kw`
    without the overhead, which is a factor.
    """

    entry: int
    pool: str
    from_: Utc = Field(alias="from")
    usd_per_hour: Usd | None
    kw: Decimal | None
    overhead: Decimal
    gpus: int | None
    use: Use | None
    created: Utc


class UnitHours(Answer):
    """`sold` + `lent` + `idle` + `other` = `calibrated`. `sold`: what contracts hold and others do not use,
    and what requests without a contract use. `lent`: what contracts hold and others use. `other`: of machines
    in other use. `used`: the work of requests.
    """

    calibrated: Decimal
    sold: Decimal
    lent: Decimal
    idle: Decimal
    other: Decimal
    used: Decimal


class Commitment(Answer):
    """Of contracts, in unit-hours. Null: no contract, or no evidence of what was used."""

    total_commitment: Decimal | None
    used_commitment: Decimal | None
    unused_commitment: Decimal | None
    short_commitment: Decimal | None
    utilization_percentage: Decimal | None


class PerUnit(Answer):
    """What our own machines earn and cost for each; null while a part of it is not known."""

    revenue: Usd | None
    cost: Usd | None
    margin: Usd | None


class UnknownFigures(Answer):
    """What is in no sum: time of machines without that figure, requests whose cost or price is not known."""

    cost_machine_hours: Decimal
    gpus_machine_hours: Decimal
    power_machine_hours: Decimal
    capacity_machine_hours: Decimal
    cost_requests: int
    price_requests: int


class EconomicsTotal(Answer):
    """The sum of all lines. `revenue` is that of tokens, of capacity and by the terms of invoices
    (minimum commitments, less volume discounts and credit notes), less `credits`. Null: nothing of it is
    known.
    """

    revenue: Usd
    revenue_tokens: Usd
    revenue_capacity: Usd
    revenue_terms: Usd
    credits: Usd
    cost: Usd | None
    cost_machines: Usd | None
    cost_providers: Usd | None
    cost_makers: Usd
    margin: Usd | None
    machine_hours: Decimal
    gpu_hours: Decimal | None
    kwh: Decimal | None
    unit_hours: UnitHours
    commitment: Commitment
    economic_utilization_percentage: Decimal | None
    per_gpu_hour: PerUnit
    per_kwh: PerUnit
    per_mw_year: PerUnit
    unknown: UnknownFigures


class EconomicsLine(EconomicsTotal):
    """One group. It has the names by which lines are grouped; null: no model, no contract."""

    quarter: str | None = None
    month: str | None = None
    use: Use | None = None
    pool: str | None = None
    model: str | None = None
    contract: str | None = None


class EconomicsAnswer(Answer):
    """[from, until) in groups, and in all."""

    from_: Utc = Field(alias="from")
    until: Utc
    by: list[str]
    currency: str
    rounding: str
    lines: list[EconomicsLine]
    total: EconomicsTotal


class ReclaimLoss(Answer):
    """What is earned less, what is given back for it, and by how much contracts are short."""

    lost_revenue: Usd
    credits: Usd
    short_unit_hours: Decimal


class QuarterLoss(ReclaimLoss):
    """The same in one quarter. `cost_moved`: what the machines cost then, which the other use bears."""

    quarter: str
    cost_moved: Usd | None


class ContractLoss(ReclaimLoss):
    """The same of one contract."""

    contract: str


class ReclaimMoney(ReclaimLoss):
    """What a reclaim costs from its deadline until the end of so many quarters, if requests go on as in the
    last `basis_days`.
    """

    quarters: int
    until: Utc
    basis_days: int
    cost_moved: Usd | None
    by_quarter: list[QuarterLoss]
    contracts: list[ContractLoss]


class Difference(Answer):
    """By how much each is more, in USD and unit-hours."""

    revenue: Usd
    credits: Usd
    cost: Usd | None
    margin: Usd | None
    unit_hours: UnitHours
    short_commitment: Decimal


class Compared(Answer):
    """What is expected as it is, and with the changes; `quarter` or `use` where it is of one."""

    quarter: str | None = None
    use: Use | None = None
    before: EconomicsTotal
    after: EconomicsTotal
    difference: Difference


class WhatIfAnswer(Answer):
    """What is expected until the end of so many quarters, if requests go on as in the last `basis_days`."""

    from_: Utc = Field(alias="from")
    until: Utc
    basis_days: int
    currency: str
    by_quarter: list[Compared]
    by_use: list[Compared]
    total: Compared


class TakeBackAnswer(Answer):
    """So many machines can be taken for good then, if these contracts get notice now. Until the end of the
    plan that costs `lost_revenue` and moves `cost_moved` to the other use.
    """

    machines: int
    notices: list[str]
    lost_revenue: Usd
    cost_moved: Usd | None


class TakeBackAt(Answer):
    """From this moment on: without any notice, and with notice given now."""

    quarter: str
    from_: Utc = Field(alias="from")
    without_notice: TakeBackAnswer
    with_notice: TakeBackAnswer


class AssuredContract(Answer):
    """What a contract brings for sure: until its tenant's notice, given now, would end it."""

    contract: str
    tenant: str
    tenant_name: str | None
    ends: Utc
    assured_until: Utc
    assured_unit_hours: Decimal
    assured_revenue: Usd


class PoolAhead(Answer):
    """One pool in the quarters to come."""

    pool: str
    machines: int
    expected: list[EconomicsLine]
    take_back: list[TakeBackAt]
    contracts: list[AssuredContract]


class EconomicPlan(Answer):
    """What is expected of each pool, and what of it can be taken back by when and for how much."""

    from_: Utc = Field(alias="from")
    until: Utc
    quarters: int
    basis_days: int
    currency: str
    data: list[PoolAhead]
