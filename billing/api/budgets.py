"""Routes of budgets."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, Field, WithJsonSchema
from sqlalchemy import Connection

from billing.api.amounts import Amount
from billing.api.answer import Answer, Listing, Ms, Usd
from billing.api.control import Control, ControlPlane
from billing.api.fields import Body, IdPath, Moment, Name, OutsideUrl, TenantQuery
from billing.api.limits import KeyId
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import budget_alerts, budgets, tenants
from billing.catalogue.budget_alerts import Alert
from billing.catalogue.budget_periods import Per, Window
from billing.catalogue.budgets import Budget, Raise, Whose
from billing.catalogue.money import Money
from billing.contracts import store
from billing.ledger.budget_spent import count_if_new
from billing.page import Page
from billing.refusals import Forbidden, Invalid

router = APIRouter(prefix="/admin/v1/budgets", tags=["budgets"], dependencies=[KNOWN_QUERY])

Percent = Annotated[int, Field(ge=1, le=100)]


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as exc:
        raise ValueError("a date is such as 2026-11-02") from exc


class RaiseBody(Body):
    """So much more, until then."""

    usd: Amount
    until: Moment


class WindowBody(Body):
    """So many days, again and again, counted from a date."""

    days: Annotated[int, Field(ge=1, le=366)]
    starts: Annotated[
        str, Field(max_length=10), AfterValidator(_date), WithJsonSchema({"type": "string", "format": "date"})
    ]


class BudgetSet(Body):
    """What may be spent in a `day`, a `month` or a `window` of some days of the tenant's time zone, or in
    `total`: by a tenant, one of its projects, or one of its keys.
    """

    tenant: Name | None = None
    project: Name | None = None
    key_id: KeyId | None = None
    per: Literal["day", "month", "window", "total"]
    usd: Amount
    raised: RaiseBody | None = None
    window: WindowBody | None = None

    def days(self) -> Window | None:
        """Raises Invalid unless it is there with a `window`, and only then."""
        if (self.per == "window") != (self.window is not None):
            raise Invalid("`window` says of how many days a budget per `window` is.", param="window")
        return (
            None if self.window is None else Window(self.window.days, date.fromisoformat(self.window.starts))
        )


class AlertSet(Body):
    """Who is told when so many percent are spent."""

    percent: Percent
    url: OutsideUrl


class AlertAnswer(Answer):
    """`failure`: why the last attempt failed; it is tried again."""

    percent: int
    url: str
    failure: str | None


class AlertMade(AlertAnswer):
    """`secret` signs what is sent, and is shown this once."""

    budget: str
    secret: str


class RaisedAnswer(Answer):
    """So much more, until then."""

    usd: Usd
    until_ms: Ms


class BudgetState(Answer):
    """A budget in its current period; `until_ms` null: it has no end. `left` is below 0 where more was
    spent than the budget is now. `runs_out_ms`: when it is used up, if spending goes on as in this period so
    far, since its first request; null: not in this period, or nothing is spent.
    """

    per: Literal["day", "month", "window", "total", "prepaid"]
    usd: Usd
    raised: RaisedAnswer | None
    spent: Usd
    left: Usd
    from_ms: Ms
    until_ms: Ms | None
    runs_out_ms: Ms | None


class BudgetAnswer(BudgetState):
    """Whose budget it is, and who is told of it."""

    budget: str
    tenant: str
    tenant_name: str
    project: str | None
    project_name: str | None
    key_id: str | None
    alerts: list[AlertAnswer]


@router.put("", response_model=BudgetAnswer)
def put(body: BudgetSet, control: Control, response: Response) -> dict[str, Any]:
    """Set a budget. What was spent in the current period counts from its beginning, also for a new budget."""
    with control.changing(response) as connection:
        now_ms = store.now_ms(connection)
        if body.raised is not None and body.raised.until <= now_ms:
            raise Invalid("A raise ends in the future.", param="raised")
        more = None if body.raised is None else Raise(Money.parse(body.raised.usd), body.raised.until)
        if more is not None and not more.by.picousd:
            raise Invalid("A raise is more than nothing.", param="raised")
        owner = body.tenant or control.tenant_id
        whose = budgets.find_whose(connection, owner, body.project, body.key_id, only=control.tenant_id)
        _require_settable(control, whose)
        made = budgets.put(
            connection, whose, Per(body.per), Money.parse(body.usd), more, now_ms, window=body.days()
        )
        count_if_new(connection, [made])
        (shown,) = _shown(connection, [budgets.find(connection, made.budget_id)])
    return shown


@router.get("", response_model=Listing[BudgetAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    key_id: Annotated[KeyId | None, Query()] = None,
    per: Annotated[Literal["day", "month", "window", "total", "prepaid"] | None, Query()] = None,
) -> dict[str, Any]:
    """The budgets of a tenant, its projects and its keys, of one key, or all."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        wanted_per = None if per is None else Per(per)
        found = budgets.list_page(connection, asked, tenant_id, key_id=key_id, per=wanted_per)
        return listing(Page(_shown(connection, found.rows), found.next), dict)


@router.delete("/{budget_id}", response_model=BudgetAnswer)
def remove(budget_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Remove a budget. The answer shows it."""
    with control.changing(response) as connection:
        found = budgets.find(connection, budget_id, tenant_id=control.tenant_id)
        _require_settable(control, Whose(found.tenant_id, found.project_id, found.key_id))
        (shown,) = _shown(connection, [found])
        budgets.remove(connection, budget_id)
    return shown


@router.put("/{budget_id}/alerts", response_model=AlertMade)
def put_alert(budget_id: IdPath, body: AlertSet, control: Control, response: Response) -> dict[str, Any]:
    """Have somebody told, once in each period, when so many percent of a budget are spent: a POST of JSON to
    this URL, signed as the Standard Webhooks specification has it. To set it again makes a new secret.
    """
    with control.changing(response) as connection:
        made = budget_alerts.put(connection, budget_id, body.percent, body.url)
    return {"budget": budget_id, **_shown_alert(made), "secret": made.secret}


@router.delete("/{budget_id}/alerts/{percent}", response_model=AlertAnswer)
def remove_alert(
    budget_id: IdPath, percent: Annotated[Percent, Path()], control: Control, response: Response
) -> dict[str, Any]:
    """Tell nobody any more at so many percent. The answer shows the alert."""
    with control.changing(response) as connection:
        return _shown_alert(budget_alerts.remove(connection, budget_id, percent))


def _require_settable(control: ControlPlane, whose: Whose) -> None:
    """What all of a tenant may spend is the operator's to say. Raises Forbidden."""
    if control.tenant_id is not None and whose.project_id is None and whose.key_id is None:
        raise Forbidden("A tenant sets budgets of its projects and keys, not its own.", param="tenant")


def _shown(connection: Connection, some: Sequence[Budget]) -> list[dict[str, Any]]:
    now_ms = store.now_ms(connection)
    names = tenants.names(connection, [budget.tenant_id for budget in some])
    projects = budgets.project_names(connection, some)
    alerts = budget_alerts.of_budgets(connection, [budget.budget_id for budget in some])
    return [
        _shown_one(budget, names, projects, now_ms)
        | {"alerts": [_shown_alert(alert) for alert in alerts.get(budget.budget_id, ())]}
        for budget in some
    ]


def _shown_alert(alert: Alert) -> dict[str, Any]:
    return {"percent": alert.percent, "url": alert.url, "failure": alert.failure}


def _shown_one(
    budget: Budget, tenant_names: Mapping[str, str], project_names: Mapping[str, str], now_ms: int
) -> dict[str, Any]:
    return {
        "budget": budget.budget_id,
        "tenant": budget.tenant_id,
        "tenant_name": tenant_names[budget.tenant_id],
        "project": budget.project_id,
        "project_name": None if budget.project_id is None else project_names[budget.project_id],
        "key_id": budget.key_id,
        "per": budget.per.value,
    } | figures(budget, now_ms)


def figures(budget: Budget, now_ms: int) -> dict[str, Any]:
    """Its amounts and its period, as JSON."""
    return {
        "usd": str(budget.amount),
        "raised": None
        if budget.raised is None
        else {"usd": str(budget.raised), "until_ms": budget.raised_until_ms},
        "spent": str(budget.spent),
        "left": str(budget.limit - budget.spent),
        "from_ms": budget.from_ms,
        "until_ms": budget.until_ms,
        "runs_out_ms": budget.runs_out_ms(now_ms),
    }
