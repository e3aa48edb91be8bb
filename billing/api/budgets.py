"""Routes of budgets."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field, WithJsonSchema

from billing.api.answer import Answer, Listing, Ms, Usd
from billing.api.control import Control
from billing.api.fields import Body, IdPath, Moment, Name, TenantQuery
from billing.api.limits import KeyId
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import budgets, tenants
from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Budget, Raise
from billing.catalogue.money import Money, MoneyError
from billing.contracts import store
from billing.ledger.budget_spent import count_if_new
from billing.refusals import Invalid

router = APIRouter(prefix="/admin/v1/budgets", tags=["budgets"], dependencies=[KNOWN_QUERY])

# The scripts count in micro-dollars: far below where a Lua number is no longer exact.
_USD_MAX: Final = 10**9


def _usd(text: str) -> str:
    try:
        amount = Money.parse(text)
    except MoneyError as exc:
        raise ValueError(str(exc)) from exc
    if not 0 <= amount.picousd <= _USD_MAX * 10**12:
        raise ValueError(f"an amount is from 0 to {_USD_MAX} USD")
    return text


Amount = Annotated[
    str,
    Field(max_length=40),
    AfterValidator(_usd),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,10}(\.[0-9]{1,12})?$", "examples": ["1.00"]}),
]


class RaiseBody(Body):
    """So much more, until then."""

    usd: Amount
    until: Moment


class BudgetSet(Body):
    """What may be spent in a `day` or `month` of the tenant's time zone, or in `total`: by a tenant, one of
    its projects, or one of its keys.
    """

    tenant: Name | None = None
    project: Name | None = None
    key_id: KeyId | None = None
    per: Literal["day", "month", "total"]
    usd: Amount
    raised: RaiseBody | None = None


class RaisedAnswer(Answer):
    """So much more, until then."""

    usd: Usd
    until_ms: Ms


class BudgetAnswer(Answer):
    """A budget in its current period; `until_ms` null: it has no end. `left` is below 0 where more was
    spent than the budget is now.
    """

    budget: str
    tenant: str
    tenant_name: str
    project: str | None
    project_name: str | None
    key_id: str | None
    per: Literal["day", "month", "total"]
    usd: Usd
    raised: RaisedAnswer | None
    spent: Usd
    left: Usd
    from_ms: Ms
    until_ms: Ms | None


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
        whose = budgets.find_whose(connection, body.tenant, body.project, body.key_id)
        made = budgets.put(connection, whose, Per(body.per), Money.parse(body.usd), more, now_ms)
        count_if_new(connection, [made])
        made = budgets.find(connection, made.budget_id)
        names = tenants.names(connection, [made.tenant_id])
        projects = budgets.project_names(connection, [made])
    return _shown(made, names, projects)


@router.get("", response_model=Listing[BudgetAnswer])
def list_all(control: Control, asked: PageQuery, tenant: TenantQuery = None) -> dict[str, Any]:
    """The budgets of a tenant, its projects and its keys, or all."""
    with control.reading() as connection:
        tenant_id = None if tenant is None else tenants.find(connection, tenant).tenant_id
        found = budgets.list_page(connection, asked, tenant_id)
        names = tenants.names(connection, [budget.tenant_id for budget in found.rows])
        projects = budgets.project_names(connection, found.rows)
        return listing(found, lambda budget: _shown(budget, names, projects))


@router.delete("/{budget_id}", response_model=BudgetAnswer)
def remove(budget_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Remove a budget. The answer shows it."""
    with control.changing(response) as connection:
        gone = budgets.remove(connection, budget_id)
        names = tenants.names(connection, [gone.tenant_id])
        projects = budgets.project_names(connection, [gone])
    return _shown(gone, names, projects)


def _shown(
    budget: Budget, tenant_names: Mapping[str, str], project_names: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "budget": budget.budget_id,
        "tenant": budget.tenant_id,
        "tenant_name": tenant_names[budget.tenant_id],
        "project": budget.project_id,
        "project_name": None if budget.project_id is None else project_names[budget.project_id],
        "key_id": budget.key_id,
        "per": budget.per.value,
        "usd": str(budget.amount),
        "raised": None
        if budget.raised is None
        else {"usd": str(budget.raised), "until_ms": budget.raised_until_ms},
        "spent": str(budget.spent),
        "left": str(budget.limit - budget.spent),
        "from_ms": budget.from_ms,
        "until_ms": budget.until_ms,
    }
