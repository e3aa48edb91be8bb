"""Routes of prices."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import ConfigDict, Field

from billing import models
from billing.api.control import Control
from billing.api.fields import Body, Moment, Name
from billing.money import price_string
from billing.price_book import Price, list_prices, set_price

router = APIRouter(prefix="/admin/v1/prices", tags=["prices"])

PriceText = Annotated[str, Field(min_length=1, max_length=32)]


class NewPrice(Body):
    """USD per million tokens, as decimal strings with at most six decimals. Without `from` it holds from now on.

    Without `cached_input`, cached input costs what other input does.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)

    model: Name
    input: PriceText
    cached_input: PriceText | None = None
    output: PriceText
    from_ms: Annotated[Moment | None, Field(alias="from")] = None


@router.post("", status_code=201)
def create(body: NewPrice, control: Control, response: Response) -> dict[str, Any]:
    """Set a price. What was priced stays priced; a request keeps the price that held when it started."""
    with control.changing(response) as connection:
        models.find(connection, body.model)
        price = set_price(
            connection,
            body.model,
            input=body.input,
            cached_input=body.input if body.cached_input is None else body.cached_input,
            output=body.output,
            valid_from_ms=body.from_ms,
        )
    return _shown(price)


@router.get("")
def list_all(control: Control, model: Annotated[Name | None, Query()] = None) -> dict[str, Any]:
    """All prices, past and to come; of one model or of all, the newest of each first."""
    with control.reading() as connection:
        if model is not None:
            models.find(connection, model)
        return {"data": [_shown(price) for price in list_prices(connection, model)]}


def _shown(price: Price) -> dict[str, Any]:
    return {
        "price_id": price.price_id,
        "model": price.model,
        "currency": "USD",
        "input": price_string(price.input_picousd),
        "cached_input": price_string(price.cached_input_picousd),
        "output": price_string(price.output_picousd),
        "from_ms": price.valid_from_ms,
    }
