"""The answers about reclaims and their dry runs."""

from typing import Any

from pydantic import Field

from billing.api.answer import Answer, Decimal, Utc
from billing.api.capacity_answers import RateSpan
from billing.api.economics_answers import ReclaimMoney
from billing.reclaims.store import State, Use


class ReclaimAnswer(Answer):
    """`chosen`: the instances that have left or are to leave."""

    reclaim: str
    pool: str
    instances: int
    use: Use
    state: State
    break_: bool = Field(alias="break")
    chosen: list[str]
    by: Utc
    released: Utc | None
    created: Utc


class ReclaimEntry(Answer):
    """One step of a reclaim's history."""

    at: Utc
    change: str
    detail: dict[str, Any]


class ReclaimShown(ReclaimAnswer):
    """A reclaim with its steps, oldest first."""

    history: list[ReclaimEntry]


class Leaving(Answer):
    """An instance that leaves, and its open requests by class."""

    instance: str
    ready: bool
    load: float
    open: dict[str, int]


class LeftOver(Answer):
    """The capacity that a pool has left, in units per second."""

    from_: Utc = Field(alias="from")
    until: Utc | None
    machines: int
    capacity: Decimal
    reserved: Decimal
    free: Decimal
    short: Decimal


class AffectedContract(Answer):
    """`units`: the rate at the deadline. `units_then`: the lowest rate that it is left with, from
    `least_from` on.
    """

    contract: str
    tenant: str
    tenant_name: str | None
    from_: Utc = Field(alias="from")
    ends: Utc
    run_out: bool
    holds: bool
    units: Decimal
    units_then: Decimal
    least_from: Utc | None


class OthersUnits(Answer):
    """The capacity of on-demand and flex, in units per second."""

    units_before: Decimal
    units_after: Decimal


class AffectedRequest(Answer):
    """`resumes`: it is preempted and resumes on another instance; else it ends by `end_by`."""

    request: str
    tenant: str
    tenant_name: str | None
    class_: str = Field(alias="class")
    instance: str
    started: Utc
    resumes: bool
    end_by: Utc


class ReclaimPlan(Answer):
    """What a reclaim would do. `refusal`: why it would be refused. `broken`: by how much contracts would miss
    what was signed.
    """

    pool: str
    instances: int
    use: Use
    by: Utc
    break_: bool = Field(alias="break")
    refusal: str | None
    broken: list[RateSpan]
    drain_from: Utc
    drains_now: bool
    leaving: list[Leaving]
    not_running: int
    left: list[LeftOver]
    contracts: list[AffectedContract]
    others: OthersUnits
    open: dict[str, int]
    streams: list[AffectedRequest]


class ReclaimOrdered(ReclaimAnswer):
    """The reclaim, and what it does."""

    plan: ReclaimPlan


class ReclaimPreview(Answer):
    """What a dry run answers."""

    reclaim: None
    plan: ReclaimPlan
    money: ReclaimMoney
