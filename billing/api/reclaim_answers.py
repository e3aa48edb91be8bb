"""What is answered of reclaims, and of what one would do."""

from typing import Any

from pydantic import Field

from billing.api.answer import Answer, Decimal, Utc
from billing.api.capacity_answers import RateSpan
from billing.reclaims.store import State, Use


class ReclaimAnswer(Answer):
    """`chosen`: the instances that left, or are to leave."""

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
    """One step of it."""

    at: Utc
    change: str
    detail: dict[str, Any]


class ReclaimShown(ReclaimAnswer):
    """With each step of it, oldest first."""

    history: list[ReclaimEntry]


class Leaving(Answer):
    """An instance that leaves, and what is open there by class."""

    instance: str
    ready: bool
    load: float
    open: dict[str, int]


class LeftOver(Answer):
    """What a pool has left, in units per second."""

    from_: Utc = Field(alias="from")
    until: Utc | None
    machines: int
    capacity: Decimal
    reserved: Decimal
    free: Decimal
    short: Decimal


class AffectedContract(Answer):
    """`units` at the deadline; `units_then`: what it is left with when that is least, from `least_from`
    on.
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
    """What on-demand and flex have, in units per second."""

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
    """What a reclaim does to whom. `refusal`: why it would not be done; `broken`: by how much contracts do
    not have what was signed.
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
