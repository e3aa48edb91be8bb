"""Routes of providers' own count of usage, beside ours."""

from datetime import date
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from billing.accounts import audit_log
from billing.api.control import Control
from billing.api.fields import Body, Moment, Name
from billing.api.query import KNOWN_QUERY
from billing.api.usage_answers import ComparedAnswer, ProviderUsageAnswer
from billing.audit import finding_rows, provider_counts
from billing.audit.provider_counts import Account, Counted
from billing.findings import FindingKind
from billing.ledger.provider_usage import Period, provider_usage
from billing.moments import DAY_MS
from billing.refusals import Invalid
from billing.wire.engine_kinds import EXPORTING, without_snapshot

router = APIRouter(prefix="/admin/v1/provider-usage", tags=["usage"], dependencies=[KNOWN_QUERY])

_PERIOD_MS_MAX: Final = 400 * DAY_MS
_DAYS_MAX: Final = 400
_LINES_MAX: Final = 20_000


def _day(given: str) -> str:
    if date.fromisoformat(given).isoformat() != given:
        raise ValueError("a day is such as 2026-01-31")
    return given


Provider = Literal[EXPORTING]  # type: ignore[valid-type]
Day = Annotated[
    str, Field(max_length=10), AfterValidator(_day), WithJsonSchema({"type": "string", "format": "date"})
]
Count = Annotated[int, Field(ge=0, le=10**15)]
ModelThere = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


class CountedBody(Body):
    """What a provider counted of a model on a day (UTC). `cached` and `written` are parts of `prompt`;
    without `written` it does not say.
    """

    day: Day
    model: ModelThere
    prompt: Count
    cached: Count = 0
    written: Count | None = None
    output: Count = 0


class ProviderUsageBody(Body):
    """What a provider exports of an account's usage: the days that it covers, and what was used on them.
    `instances`: those that use the account; none: all of the provider's kind.
    """

    provider: Provider
    instances: Annotated[list[Name], Field(max_length=100)] = Field(default_factory=list)
    days: Annotated[list[Day], Field(min_length=1, max_length=_DAYS_MAX)]
    counted: Annotated[list[CountedBody], Field(max_length=_LINES_MAX)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _of_its_days(self) -> "ProviderUsageBody":
        lines = [(each.day, each.model) for each in self.lines()]
        if not {day for day, _ in lines} <= set(self.days) or len(set(lines)) < len(lines):
            raise ValueError("`counted` has each model once for each of `days`")
        first, last = (date.fromisoformat(day) for day in (min(self.days), max(self.days)))
        if (last - first).days >= _DAYS_MAX:
            raise ValueError("at most 400 days at once")
        return self

    def account(self) -> Account:
        """Whose count it is."""
        return Account(self.provider, tuple(self.instances))

    def lines(self) -> list[Counted]:
        """By models, without the names of snapshots."""
        return [
            Counted(**{**each.model_dump(), "model": without_snapshot(each.model)}) for each in self.counted
        ]


@router.get("", response_model=ProviderUsageAnswer)
def of_providers(
    control: Control,
    provider: Annotated[Provider, Query(description="Their kind.")],
    since: Annotated[Moment, Query(alias="from")],
    until: Moment,
    instance: Annotated[
        str | None, Query(max_length=2000, description="Of these only, with commas between.")
    ] = None,
) -> dict[str, Any]:
    """What went to providers of a kind, by day and their name for the model, to be held against their count.
    Of requests that ended in [from, until).
    """
    if until - since > _PERIOD_MS_MAX:
        raise Invalid("At most 400 days at once.", param="until")
    names = [] if instance is None else instance.split(",")
    with control.reading() as connection:
        data = provider_usage(connection, provider, Period(since, until), names)
    return {"data": data}


@router.post("/compare", response_model=ComparedAnswer)
def compare(body: ProviderUsageBody, control: Control) -> dict[str, Any]:
    """Compare a provider's count with what was recorded, and keep nothing."""
    with control.reading() as connection:
        data = provider_counts.compare(connection, body.account(), set(body.days), body.lines())
    return {"data": data}


@router.post("", response_model=ComparedAnswer)
def take(body: ProviderUsageBody, control: Control, response: Response) -> dict[str, Any]:
    """Compare, and keep the count: days that are over and differ are findings, until they do not any more.
    What was kept of these days before is replaced.
    """
    account, days = body.account(), set(body.days)
    with control.changing(response) as connection:
        finding_rows.hold_off(connection)
        provider_counts.take(connection, account, days, body.lines())
        found = provider_counts.check(connection, (account, days))

        def looked_for(kind: str, about: str) -> bool:
            of_provider = kind == FindingKind.PROVIDER_DIFFERS.value
            return of_provider and provider_counts.is_about(about, account, days)

        finding_rows.keep(connection, found, facts=True, only=looked_for)
        data = provider_counts.compare(connection, account, days, body.lines())
        said = {"days": sorted(days), "lines": len(body.counted), "instances": account.key}
        audit_log.append(connection, "provider_usage", body.provider, said, tenant_id=None)
    return {"data": data}
