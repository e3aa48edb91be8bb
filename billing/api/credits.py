"""Routes of prepaid credits."""

from typing import Any

from fastapi import APIRouter, Response

from billing.api.amounts import Amount
from billing.api.answer import Listing
from billing.api.control import Control
from billing.api.fields import Body, Label, Moment, Name, TenantQuery
from billing.api.invoice_answers import CreditAnswer, PrepaidAnswer
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import tenants
from billing.catalogue.money import ZERO, Money
from billing.invoices import credits, prepaid
from billing.invoices.credits import Credit
from billing.invoices.lines import to_cents
from billing.refusals import Invalid
from billing.schema.clock import database_now_ms

router = APIRouter(prefix="/admin/v1/credits", tags=["credits"], dependencies=[KNOWN_QUERY])


class CreditGrant(Body):
    """A credit of a tenant, from now on; without `expires` for ever. `note`: for what, such as an order."""

    tenant: Name
    usd: Amount
    expires: Moment | None = None
    note: Label | None = None


class PrepaidSet(Body):
    """Whether a tenant is prepaid."""

    tenant: Name
    prepaid: bool


@router.post("", status_code=201, response_model=CreditAnswer)
def grant(body: CreditGrant, control: Control, response: Response) -> dict[str, Any]:
    """Grant a credit. Invoices use the oldest first; one that expires within a period pays for what was used
    before.
    """
    amount = Money.parse(body.usd)
    if amount == ZERO:
        raise Invalid("A credit is more than nothing.", param="usd")
    # It pays what is due, and that is in cents.
    if amount != to_cents(amount.picousd):
        raise Invalid("A credit is of whole cents.", param="usd")
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        now_ms = database_now_ms(connection)
        if body.expires is not None and body.expires <= now_ms:
            raise Invalid("It would have expired already.", param="expires")
        made = credits.grant(
            connection, tenant.tenant_id, amount, now_ms, expires_ms=body.expires, note=body.note
        )
        prepaid.renew(connection, tenant.tenant_id, now_ms)
    return _shown(made, {tenant.tenant_id: tenant.name}, now_ms)


@router.put("/prepaid", response_model=PrepaidAnswer)
def set_prepaid(body: PrepaidSet, control: Control, response: Response) -> dict[str, Any]:
    """Whether a tenant may use no more than its credits can pay. `GET budgets` shows what is left of them, as
    the budget `prepaid`.
    """
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        prepaid.set_prepaid(connection, tenant.tenant_id, body.prepaid, database_now_ms(connection))
    return {"tenant": tenant.tenant_id, "prepaid": body.prepaid}


@router.get("", response_model=Listing[CreditAnswer])
def list_all(control: Control, asked: PageQuery, tenant: TenantQuery = None) -> dict[str, Any]:
    """All credits, or those of a tenant, the oldest first."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        page = credits.list_page(connection, asked, tenant_id)
        names = tenants.names(connection, {each.tenant_id for each in page.rows})
        now_ms = database_now_ms(connection)
    return listing(page, lambda each: _shown(each, names, now_ms))


def _shown(credit: Credit, names: dict[str, str], now_ms: int) -> dict[str, Any]:
    return {
        "credit": credit.credit,
        "tenant": credit.tenant_id,
        "tenant_name": names.get(credit.tenant_id),
        "usd": str(credit.amount),
        "used": str(credit.used),
        "left": str(credit.left(now_ms)),
        "granted_ms": credit.granted_ms,
        "expires_ms": credit.expires_ms,
        "note": credit.note,
    }
