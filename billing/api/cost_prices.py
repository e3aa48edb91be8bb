"""Routes of cost prices: what providers charge. They are the operator's alone; no tenant sees any of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from billing.api.answer import Listing
from billing.api.catalogue_answers import CostPriceAnswer, CostPriceSet
from billing.api.control import Control
from billing.api.fields import Name
from billing.api.paging import PageQuery, listing
from billing.api.prices import NewAmounts, shown
from billing.api.query import KNOWN_QUERY
from billing.catalogue import instances, models
from billing.catalogue.price_book import COST, Price, Scope, list_page, set_price, withdraw_price
from billing.refusals import Invalid
from billing.wire import redis_clock
from billing.wire.engine_kinds import is_provider

router = APIRouter(prefix="/admin/v1/cost-prices", tags=["cost_prices"], dependencies=[KNOWN_QUERY])


class NewCostPrice(NewAmounts):
    """The same of what a provider charges: at this instance, or at all of the model's that have no cost price
    of their own.
    """

    instance: Name | None = None


@router.post("", status_code=201, response_model=CostPriceSet)
def create(body: NewCostPrice, control: Control, response: Response) -> dict[str, Any]:
    """Set what a provider charges. A request costs what held when it started."""
    with control.changing(response) as connection:
        models.find(connection, body.model)
        if body.instance is not None:
            at = instances.find(connection, body.instance)
            if at.model != body.model or not is_provider(at.engine):
                raise Invalid(
                    f"Instance {body.instance!r} is no provider of {body.model!r}.", param="instance"
                )
        made = set_price(
            connection,
            body.model,
            **body.amounts(),
            valid_from_ms=body.from_ms,
            confirmed=body.confirmed,
            now_ms=lambda: redis_clock.now_ms(control.redis),
            scope=Scope(body.instance),
            of=COST,
        )
    return {**_shown(made.price), "replaces": None if made.replaces is None else made.replaces.price_id}


@router.delete("/{price_id}", response_model=CostPriceAnswer)
def withdraw(
    price_id: Annotated[int, Path(ge=1, le=2**63 - 1)], control: Control, response: Response
) -> dict[str, Any]:
    """Withdraw a cost price that does not hold yet."""
    with control.changing(response) as connection:
        found = withdraw_price(
            connection, price_id, now_ms=lambda: redis_clock.now_ms(control.redis), of=COST
        )
        return _shown(found)


@router.get("", response_model=Listing[CostPriceAnswer])
def list_all(
    control: Control, asked: PageQuery, model: Annotated[Name | None, Query()] = None
) -> dict[str, Any]:
    """All past and future cost prices, of one model or of all, the newest of each first."""
    with control.reading() as connection:
        if model is not None:
            models.find(connection, model)
        return listing(list_page(connection, asked, model, of=COST), _shown)


def _shown(price: Price) -> dict[str, Any]:
    return {**shown(price), "instance": price.scope.instance}
