"""Routes of prices."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypedDict

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from sqlalchemy import Connection

from billing.accounts import audit_log
from billing.api.answer import Listing
from billing.api.catalogue_answers import BackfillAnswer, PriceAnswer, PriceListTaken, PriceSet
from billing.api.control import Control, ControlPlane
from billing.api.fields import MS_MAX, Body, ModelName, Moment, Name
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import models, tenants
from billing.catalogue.money import ZERO, price_string
from billing.catalogue.price_book import (
    Price,
    PriceBook,
    Scope,
    SetPrice,
    hold_prices,
    list_page,
    list_prices,
    read_price_book,
    set_price,
    withdraw_price,
)
from billing.contracts import store as contracts
from billing.ledger import backfill as later
from billing.ledger.backfill import Due, backfill
from billing.ledger.price_trial import SAMPLE_MAX, rate, sample
from billing.refusals import Invalid, RequestRefused
from billing.schema.clock import database_now_ms
from billing.wire import redis_clock

router = APIRouter(prefix="/admin/v1/prices", tags=["prices"], dependencies=[KNOWN_QUERY])

PriceClass = Literal["reserved", "on_demand", "flex", "batch"]
_CONTRACT: Final = r"con_[0-9a-f]{24}"


def _contract(name: str) -> str:
    if re.fullmatch(_CONTRACT, name) is None:
        raise ValueError("a contract is `con_` and 24 hexadecimal digits; `taas contract list` shows them")
    return name


ContractName = Annotated[
    str, AfterValidator(_contract), WithJsonSchema({"type": "string", "pattern": f"^{_CONTRACT}$"})
]
PriceText = Annotated[str, Field(min_length=1, max_length=32)]


class Amounts(TypedDict):
    """The four prices, as `set_price` takes them."""

    input: str
    cached_input: str
    cache_write: str | None
    output: str


class NewAmounts(Body):
    """USD per million tokens, as decimal strings with at most six decimals. Without `from` it takes effect
    now. `cached_input` (read from a cache) and `cache_write` (put into a provider's) cost the same as other
    input if they are left out. `free`: all prices are 0. `confirmed`: confirms a price more than ten times
    higher or lower than before.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)

    model: ModelName
    input: PriceText | None = None
    cached_input: PriceText | None = None
    cache_write: PriceText | None = None
    output: PriceText | None = None
    free: bool = False
    from_ms: Annotated[Moment | None, Field(alias="from")] = None
    confirmed: bool = False

    def amounts(self) -> Amounts:
        """Raises Invalid where one is missing, or one is given beside `free`."""
        if self.free:
            if {self.input, self.cached_input, self.cache_write, self.output} != {None}:
                raise Invalid("A model that is free takes no other price.", param="free")
            return Amounts(input="0", cached_input="0", cache_write=None, output="0")
        if self.input is None or self.output is None:
            raise Invalid(
                "A price has `input` and `output`, or is `free`.", param="output" if self.input else "input"
            )
        cached_input = self.input if self.cached_input is None else self.cached_input
        return Amounts(
            input=self.input, cached_input=cached_input, cache_write=self.cache_write, output=self.output
        )


class NewPrice(NewAmounts):
    """A price for all requests, for those of one class (`batch`: lines of batches), or for those of one
    contract: within it, and above it (class `on_demand`). `discount`: percent off the price for all that
    holds from then on.
    """

    class_: Annotated[PriceClass | None, Field(alias="class")] = None
    contract: ContractName | None = None
    discount: Annotated[int | None, Field(ge=1, le=100)] = None

    def amounts_in(self, connection: Connection) -> Amounts:
        """As `amounts`; raises Invalid for a discount of something else than a class, beside prices, or of no
        price.
        """
        if self.discount is None:
            return self.amounts()
        if self.free or {self.input, self.cached_input, self.cache_write, self.output} != {None}:
            raise Invalid("A discount takes no other price.", param="discount")
        if self.class_ is None and self.contract is None:
            raise Invalid("A discount is for a class or a contract.", param="discount")
        moment_ms = database_now_ms(connection) if self.from_ms is None else self.from_ms
        whole = PriceBook(list_prices(connection, self.model)).at(self.model, moment_ms)
        if whole is None:
            raise Invalid("The model has no price then of which to take something off.", param="discount")
        left = 100 - self.discount
        return Amounts(
            input=_part(whole.input_picousd, left),
            cached_input=_part(whole.cached_input_picousd, left),
            cache_write=None if whole.cache_write_picousd is None else _part(whole.cache_write_picousd, left),
            output=_part(whole.output_picousd, left),
        )


def _part(picousd: int, percent: int) -> str:
    """A price less its discount; what is less than a pico-dollar is left to the caller."""
    return price_string(picousd * percent // 100)


class NewPrices(Body):
    """Prices that are set together. `dry_run`: only shows what they would do. `confirmed`: also those that
    change by more than ten times. `sample`: so many requests of each model are rated.
    """

    prices: Annotated[list[NewPrice], Field(min_length=1, max_length=500)]
    dry_run: bool = False
    confirmed: bool = False
    sample: Annotated[int, Field(ge=1, le=SAMPLE_MAX)] = 2_000


class Backfill(Body):
    """Prices a model's unpriced requests of [from, until) by the current price list. `dry_run`: only show
    what that would be.
    """

    model: ModelName
    from_ms: Annotated[Moment, Field(alias="from")]
    until: Moment | None = None
    tenant: Name | None = None
    dry_run: bool = False


@router.post("", status_code=201, response_model=PriceSet)
def create(body: NewPrice, control: Control, response: Response) -> dict[str, Any]:
    """Set a price. It replaces a future price for the same moment. Priced requests stay priced; a request has
    the price that held when it started: that of its contract and class, of its contract, of its class, or of
    all.
    """
    with control.changing(response) as connection:
        made = _set(connection, control, body, confirmed=body.confirmed)
    return {**_shown(made.price), "replaces": None if made.replaces is None else made.replaces.price_id}


@router.post("/list", status_code=201, response_model=PriceListTaken)
def take_list(body: NewPrices, control: Control, response: Response) -> dict[str, Any]:
    """Set several prices, all or none, and show what recorded requests of their models would cost before and
    after: the newest of each model, as if they started when the last of these prices begins.
    """
    names = {each.model for each in body.prices}
    with control.reading() as connection:
        requests = sample(connection, names, body.sample)
    with control.changing(response) as connection:
        # First of all: two that held it shared, to read, would wait for each other.
        hold_prices(connection)
        before = read_price_book(connection, names)
        confirmed = body.confirmed or body.dry_run
        made = _set_all(connection, control, body.prices, confirmed=confirmed)
        after = read_price_book(connection, names)
        if body.dry_run:
            connection.rollback()
    # Nothing is recorded while prices are held.
    rated = rate(requests, before, after, max(each.price.valid_from_ms for each in made))
    return {
        "dry_run": body.dry_run,
        "currency": "USD",
        "prices": [
            {
                **_shown(each.price),
                "before": None if each.before is None else _shown(each.before),
                "changes_much": each.changes_much,
            }
            for each in made
        ],
        "lines": [
            {
                "model": model,
                "class": class_,
                "requests": each.requests,
                "unpriced": each.unpriced,
                "before": str(each.before),
                "after": str(each.after),
            }
            for (model, class_), each in rated.items()
        ],
    }


@router.delete("/{price_id}", response_model=PriceAnswer)
def withdraw(
    price_id: Annotated[int, Path(ge=1, le=2**63 - 1)], control: Control, response: Response
) -> dict[str, Any]:
    """Withdraw a price that does not hold yet. A price that holds or has held stays."""
    with control.changing(response) as connection:
        return _shown(withdraw_price(connection, price_id, now_ms=lambda: redis_clock.now_ms(control.redis)))


@router.post("/backfill", response_model=BackfillAnswer)
def price_later(body: Backfill, control: Control, response: Response) -> dict[str, Any]:
    """Price requests that were recorded before their model had a price, in new ledger transactions. Doing it
    again finds nothing.
    """
    with control.changing(response, dry_run=body.dry_run) as connection:
        models.find(connection, body.model)
        tenant_id = None if body.tenant is None else tenants.find(connection, body.tenant).tenant_id
        until_ms = MS_MAX if body.until is None else body.until
        scope = later.Scope(body.model, body.from_ms, until_ms, tenant_id)
        found = backfill(connection, scope, dry_run=body.dry_run)
        names = tenants.names(connection, [each.tenant_id for each in found])
        priced = [each for each in found if each.price_id is not None]
        figures = {
            "requests": sum(each.requests for each in priced),
            "amount": str(sum((each.amount or ZERO for each in priced), ZERO)),
            "still_unpriced": sum(each.requests for each in found if each.price_id is None),
        }
        if priced and not body.dry_run:
            audit_log.append(connection, "ledger", body.model, figures, tenant_id=tenant_id)
    return {
        "model": body.model,
        "dry_run": body.dry_run,
        "currency": "USD",
        "data": [_due(each, names) for each in priced],
        **figures,
    }


@router.get("", response_model=Listing[PriceAnswer])
def list_all(
    control: Control, asked: PageQuery, model: Annotated[ModelName | None, Query()] = None
) -> dict[str, Any]:
    """All past and future prices, of one model or of all, the newest of each first."""
    with control.reading() as connection:
        if model is not None:
            models.find(connection, model)
        return listing(list_page(connection, asked, model), _shown)


def _set_all(
    connection: Connection, control: ControlPlane, prices: Sequence[NewPrice], *, confirmed: bool
) -> list[SetPrice]:
    """Set prices in whatever order they come: discounts are of the prices beside them. A refusal says at
    which.
    """
    made: dict[int, SetPrice] = {}
    scopes: dict[tuple[object, ...], int] = {}
    for place in sorted(range(len(prices)), key=lambda place: prices[place].discount is not None):
        each = prices[place]
        try:
            first = scopes.setdefault((each.model, each.contract, each.class_, each.from_ms), place)
            if first != place:
                raise Invalid(f"It has the model, class, contract and beginning of prices.{first}.")
            made[place] = _set(connection, control, each, confirmed=confirmed)
        except RequestRefused as refused:
            param = f"prices.{place}" + (f".{refused.param}" if refused.param else "")
            raise type(refused)(f"{param}: {refused.message}", param=param, code=refused.code) from refused
    return [made[place] for place in range(len(prices))]


def _set(connection: Connection, control: ControlPlane, body: NewPrice, *, confirmed: bool) -> SetPrice:
    model = models.find(connection, body.model)
    if body.contract is not None and contracts.find(connection, body.contract).terms.pool != model.pool:
        raise Invalid(f"Contract {body.contract} is not for the pool of {model.name}.", param="contract")
    return set_price(
        connection,
        body.model,
        **body.amounts_in(connection),
        valid_from_ms=body.from_ms,
        confirmed=confirmed,
        now_ms=lambda: redis_clock.now_ms(control.redis),
        scope=Scope(contract_id=body.contract, class_=body.class_),
    )


def _due(due: Due, names: dict[str, str]) -> dict[str, Any]:
    return {
        "tenant": due.tenant_id,
        "tenant_name": names.get(due.tenant_id),
        "price_id": due.price_id,
        "requests": due.requests,
        "tokens": {
            "uncached": due.uncached,
            "cached": due.cached,
            "cache_write": due.written,
            "output": due.output,
        },
        "amount": str(due.amount),
    }


def shown(price: Price) -> dict[str, Any]:
    """A price, as the answers have it."""
    return {
        "price_id": price.price_id,
        "model": price.model,
        "currency": "USD",
        "input": price_string(price.input_picousd),
        "cached_input": price_string(price.cached_input_picousd),
        "cache_write": price_string(price.written_picousd),
        "output": price_string(price.output_picousd),
        "from_ms": price.valid_from_ms,
    }


def _shown(price: Price) -> dict[str, Any]:
    return {**shown(price), "class": price.scope.class_, "contract": price.scope.contract_id}
