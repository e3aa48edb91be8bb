"""The answers about contracts."""

from typing import Any

from pydantic import Field

from billing.api.answer import Answer, Decimal, Utc
from billing.api.capacity_answers import RateSpan
from billing.contracts.terms import Overflow, Side, State


class RateStep(Answer):
    """The rate in units per second from this moment on."""

    from_: Utc = Field(alias="from")
    units: Decimal


class PlannedClause(Answer):
    """A clause that takes effect later."""

    from_: Utc = Field(alias="from")
    overflow: Overflow
    spill_units: Decimal | None
    tenant_notice_days: int
    operator_notice_days: int


class ContractAnswer(Answer):
    """`until`: the end as signed. `ends`: the end after notice. `units`, overflow, cap and notice days are
    the current ones.
    """

    contract: str
    tenant: str
    tenant_name: str | None
    pool: str
    state: State
    units: Decimal
    burst_seconds: Decimal
    burst_units: Decimal
    steps: list[RateStep]
    from_: Utc = Field(alias="from")
    until: Utc
    ends: Utc
    minimum_until: Utc
    tenant_notice_days: int
    operator_notice_days: int
    notice_by: Side | None
    notice_given: Utc | None
    overflow: Overflow
    spill_units: Decimal | None
    planned: list[PlannedClause]
    headroom: Decimal
    price_reference: str | None
    created: Utc


class ContractSigned(ContractAnswer):
    """`warnings`: limits of its tenant that could undercut it."""

    warnings: list[str]


class HistoryEntry(Answer):
    """A change. `after`: the contract after it. `detail`: what `after` does not show, such as the weights of
    a `reweighed` contract.
    """

    at: Utc
    change: str
    by: str
    after: ContractAnswer
    detail: dict[str, Any] | None


class ContractHistory(Answer):
    """Oldest first."""

    data: list[HistoryEntry]


class QuoteAnswer(Answer):
    """`at_most`: the units per second that would fit over the whole period. `fits` and the fields after it
    are only set if units were asked about; they are null before the first calibration, when only `pool` and
    `units` are known.
    """

    pool: str
    from_: Utc | None = Field(None, alias="from")
    until: Utc | None = None
    at_most: Decimal | None = None
    burst_seconds: Decimal | None = None
    burst_units: Decimal | None = None
    free: list[RateSpan] | None = None
    units: Decimal | None = None
    fits: bool | None = None
    fits_from: Utc | None = None
    fits_until: Utc | None = None
    short: list[RateSpan] | None = None
