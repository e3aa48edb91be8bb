"""The route that tells whoever has a key what it may use and has used. Gateways ask it on the caller's
behalf.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field, create_model

from billing.api.answer import Answer, Ms, Usd
from billing.api.budgets import BudgetState, figures
from billing.api.control import Control
from billing.api.keys import KeyPath
from billing.api.query import KNOWN_QUERY
from billing.api.usage_answers import UsedTokens
from billing.catalogue import api_keys, budgets, limits, tenants
from billing.catalogue.budget_periods import Per, period_of
from billing.catalogue.budgets import Budget
from billing.catalogue.money import ZERO, Money
from billing.contracts import store
from billing.invoices import credits
from billing.ledger.usage_report import UsageLine, report_usage
from billing.wire.dimensions import Dimension
from billing.wire.limits import FIELDS, LimitEntry

router = APIRouter(prefix="/admin/v1/keys", tags=["keys"], dependencies=[KNOWN_QUERY])

Of = Literal["tenant", "project", "key"]


class UsedAnswer(Answer):
    """What was used and is owed for it."""

    requests: int
    tokens: UsedTokens
    amount: Usd


class UsedOf(Answer):
    """Of the whole tenant, of the key's project, and of the key itself."""

    tenant: UsedAnswer
    project: UsedAnswer
    key: UsedAnswer


class _LimitOf(Answer):
    of: Of
    model: str


_AMOUNTS: Any = {each.name: (int | None, Field(description=each.words)) for each in FIELDS}


class OwnLimit(create_model("_OwnLimitAmounts", __base__=_LimitOf, **_AMOUNTS)):  # type: ignore[misc]
    """A limit on a model (`*`: on each); null is no limit. Units are whole work units."""


class OwnBudget(BudgetState):
    """A budget that covers the key."""

    of: Of


class CreditLeft(Answer):
    """A prepaid credit of the tenant that invoices have not used up. `expires_ms` null: never."""

    credit: str
    left: Usd
    expires_ms: Ms | None


class KeyUsage(Answer):
    """`used` in this month of the tenant's time zone, [from, until), by requests that have ended.
    `projected`: what the tenant's requests will have come to at the end of the month, if it goes on as so
    far; capacity, commitments and taxes are on invoices only.
    """

    tenant: str
    project: str
    key_id: str
    time_zone: str
    from_ms: Ms
    until_ms: Ms
    used: UsedOf
    projected: Usd
    limits: list[OwnLimit]
    budgets: list[OwnBudget]
    credits: list[CreditLeft]


@router.get("/{key_id}/usage", response_model=KeyUsage)
def show_usage(key_id: KeyPath, control: Control) -> dict[str, Any]:
    """What a key, its project and its tenant have used this month, and the limits and budgets that hold for
    the key.
    """
    with control.reading() as connection:
        key = api_keys.find(connection, key_id, tenant_id=control.tenant_id)
        tenant = tenants.find(connection, key.tenant_id)
        now_ms = store.now_ms(connection)
        from_ms, until_ms = period_of(Per.MONTH, now_ms, tenant.time_zone)
        assert until_ms is not None
        lines = report_usage(
            connection, tenant=tenant.tenant_id, by=(Dimension.PROJECT, Dimension.KEY), from_ms=from_ms
        ).lines
        entries = limits.table_of(connection, [tenant.tenant_id]).entries
        own = budgets.of_tenants(connection, [tenant.tenant_id]).get(tenant.tenant_id, [])
        prepaid = credits.of_tenant(connection, tenant.tenant_id)
    owed = UsageLine.added_up(lines).amount
    return {
        "tenant": tenant.tenant_id,
        "project": key.project_id,
        "key_id": key_id,
        "time_zone": tenant.time_zone,
        "from_ms": from_ms,
        "until_ms": until_ms,
        "used": {
            "tenant": _used(lines),
            "project": _used(line for line in lines if line.group["project"] == key.project_id),
            "key": _used(line for line in lines if line.group["key"] == key_id),
        },
        "projected": str(Money(owed.picousd * (until_ms - from_ms) // max(1, now_ms - from_ms))),
        "limits": [
            {"of": of, "model": model, **entries[tenant.tenant_id, owner, model]}
            for of, owner in (("tenant", None), ("key", key_id))
            for model in _models(entries, owner)
        ],
        "budgets": [
            _budget(each, now_ms)
            for each in sorted(own, key=_widest_first)
            if each.covers(key.project_id, key_id)
        ],
        "credits": [
            {"credit": each.credit, "left": str(each.left(now_ms)), "expires_ms": each.expires_ms}
            for each in prepaid
            if each.left(now_ms) != ZERO
        ],
    }


def _widest_first(budget: Budget) -> tuple[bool, bool, str]:
    return budget.key_id is not None, budget.project_id is not None, budget.per.value


def _models(entries: Mapping[tuple[str, str | None, str], LimitEntry], owner: str | None) -> list[str]:
    return sorted(model for _, of, model in entries if of == owner)


def _used(lines: Iterable[UsageLine]) -> dict[str, Any]:
    added = UsageLine.added_up(lines).to_json()
    return {name: added[name] for name in ("requests", "tokens", "amount")}


def _budget(budget: Budget, now_ms: int) -> dict[str, Any]:
    of = "tenant" if budget.project_id is None else "project"
    return {"of": of if budget.key_id is None else "key", "per": budget.per.value} | figures(budget, now_ms)
