"""Routes of the terms by which tenants are billed, and of what their contracts' capacity costs."""

import re
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field, WithJsonSchema

from billing.api.amounts import Amount
from billing.api.answer import Listing
from billing.api.control import Control
from billing.api.fields import Body, Label, Moment, MomentOrDay, Name, begins_ms
from billing.api.invoice_answers import CapacityPriceAnswer, TermsAnswer
from billing.api.paging import PageQuery, listing
from billing.api.prices import ContractName
from billing.api.query import KNOWN_QUERY
from billing.catalogue.money import Money
from billing.contracts import store as contracts
from billing.invoices import prepaid, terms
from billing.invoices.lines import Terms, Tier
from billing.invoices.terms import CapacityPrice, DatedTerms
from billing.page import Order, page_of
from billing.schema.clock import database_now_ms

router = APIRouter(prefix="/admin/v1", tags=["terms"], dependencies=[KNOWN_QUERY])

_TIERS_MAX: Final = 20
_PERCENT: Final = r"[0-9]{1,3}(\.[0-9]{1,2})?"
_TERMS: Final[Order[DatedTerms]] = Order("terms", lambda each: (each.from_ms,), (int,))
_PRICES: Final[Order[CapacityPrice]] = Order("capacity-prices", lambda each: (each.from_ms,), (int,))


def _percent(text: str) -> str:
    if re.fullmatch(_PERCENT, text) is None or Decimal(text) > 100:
        raise ValueError("a percentage is from 0 to 100, such as 19 or 7.5")
    return text


PercentText = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(_percent),
    WithJsonSchema({"type": "string", "pattern": f"^{_PERCENT}$", "examples": ["19"]}),
]


class TierBody(Body):
    """So many percent off what is used in a period above this amount, up to the next tier."""

    above: Amount
    percent: Annotated[int, Field(ge=0, le=100)]


class TermsSet(Body):
    """How a tenant is billed, in periods that begin at `from` (now) or later; a date begins at the tenant's
    midnight. What is left out stays as it is then. `day`: of the month, on which periods begin, at the
    tenant's midnight; a month without it begins on its last. `commitment`: what it pays in a period at least.
    """

    tenant: Name
    from_ms: Annotated[MomentOrDay | None, Field(alias="from")] = None
    day: Annotated[int | None, Field(ge=1, le=31)] = None
    tax_name: Label | None = None
    tax_percent: PercentText | None = None
    commitment: Amount | None = None
    tiers: Annotated[list[TierBody] | None, Field(max_length=_TIERS_MAX)] = None

    def over(self, held: Terms) -> Terms:
        """These, and of `held` what they leave out."""
        changed: dict[str, Any] = {}
        if self.day is not None:
            changed["day"] = self.day
        if "tax_name" in self.model_fields_set:
            changed["tax_name"] = self.tax_name
        if self.tax_percent is not None:
            changed["tax_basis_points"] = basis_points(self.tax_percent)
        if self.commitment is not None:
            changed["commitment"] = Money.parse(self.commitment)
        if self.tiers is not None:
            changed["tiers"] = tuple(Tier(Money.parse(each.above), each.percent) for each in self.tiers)
        return replace(held, **changed)


class CapacityPriceSet(Body):
    """What a unit per second of a contract costs for an hour, used or not, from a moment (now) on.
    `sla_percent`: so much of it is given back for capacity that was short.
    """

    contract: ContractName
    unit_hour: Amount
    sla_percent: Annotated[int, Field(ge=0, le=1000)] = 100
    from_ms: Annotated[Moment | None, Field(alias="from")] = None


@router.post("/terms", status_code=201, response_model=TermsAnswer)
def set_terms(body: TermsSet, control: Control, response: Response) -> dict[str, Any]:
    """Set a tenant's terms, or some of them. Those of a moment that is on an invoice stay."""
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        now_ms = database_now_ms(connection)
        from_ms = now_ms if body.from_ms is None else begins_ms(body.from_ms, tenant.time_zone)
        held = terms.terms_at(connection, tenant.tenant_id, from_ms)
        made = terms.set_terms(connection, tenant.tenant_id, body.over(held), from_ms)
        prepaid.renew(connection, tenant.tenant_id, now_ms)
    return _terms(tenant.tenant_id, made)


@router.get("/terms", response_model=Listing[TermsAnswer])
def list_terms(
    control: Control, asked: PageQuery, tenant: Annotated[Name, Query(description="A tenant's id or name.")]
) -> dict[str, Any]:
    """A tenant's terms, the oldest first. Before the first: calendar months, no tax."""
    with control.reading() as connection:
        tenant_id = control.tenant_named(connection, tenant).tenant_id
        found = terms.list_terms(connection, tenant_id)
    return listing(page_of(found, _TERMS, asked), lambda each: _terms(tenant_id, each))


@router.post("/capacity-prices", status_code=201, response_model=CapacityPriceAnswer)
def set_capacity_price(body: CapacityPriceSet, control: Control, response: Response) -> dict[str, Any]:
    """Set what a contract's capacity costs. Only the first price may begin in the past."""
    with control.changing(response) as connection:
        terms.lock_contract(connection, body.contract)
        contract = contracts.find(connection, body.contract)
        now_ms = database_now_ms(connection)
        made = terms.set_capacity_price(
            connection,
            contract,
            body.unit_hour,
            body.sla_percent,
            now_ms if body.from_ms is None else body.from_ms,
            now_ms,
        )
        prepaid.renew(connection, contract.terms.tenant_id, now_ms)
    return _price(made)


@router.get("/capacity-prices", response_model=Listing[CapacityPriceAnswer])
def list_capacity_prices(
    control: Control, asked: PageQuery, contract: Annotated[ContractName, Query()]
) -> dict[str, Any]:
    """What a contract's capacity costs, the oldest first."""
    with control.reading() as connection:
        contracts.find(connection, contract, tenant_id=control.tenant_id)
        found = terms.list_capacity_prices(connection, [contract])
    return listing(page_of(found, _PRICES, asked), _price)


def basis_points(percent: str) -> int:
    """Hundredths of a percent."""
    return int(Decimal(percent) * 100)


def percent_text(points: int) -> str:
    """`1950` as `19.5`."""
    return f"{(Decimal(points) / 100).normalize():f}"


def _terms(tenant_id: str, dated: DatedTerms) -> dict[str, Any]:
    of = dated.terms
    return {
        "tenant": tenant_id,
        "from_ms": dated.from_ms,
        "day": of.day,
        "tax_name": of.tax_name,
        "tax_percent": percent_text(of.tax_basis_points),
        "commitment": str(of.commitment),
        "tiers": [{"above": str(tier.above), "percent": tier.percent} for tier in of.tiers],
    }


def _price(price: CapacityPrice) -> dict[str, Any]:
    return {
        "contract": price.contract,
        "from_ms": price.from_ms,
        "unit_hour": str(Money(price.picousd)),
        "sla_percent": price.sla_percent,
    }
