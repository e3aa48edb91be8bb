"""Routes of makers' terms, and of the books: a month's closing, and what each account holds."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from billing.api.answer import Listing
from billing.api.books_answers import BalanceAnswer, BooksAnswer, MakerTermsAnswer
from billing.api.control import Control
from billing.api.fields import Body, Label, ModelName, Moment
from billing.api.invoices import Period
from billing.api.paging import PageQuery, listing
from billing.api.prices import PriceText
from billing.api.query import KNOWN_QUERY
from billing.api.terms import PercentText, basis_points, percent_text
from billing.catalogue import models
from billing.catalogue.money import MoneyError, parse_price, price_string
from billing.invoices import books, makers
from billing.invoices.books import Balance, Books
from billing.ledger.maker_terms import MakerTerms
from billing.moments import HOUR_MS
from billing.page import Order, page_of
from billing.refusals import Invalid
from billing.schema.clock import database_now_ms

router = APIRouter(prefix="/admin/v1", tags=["books"], dependencies=[KNOWN_QUERY])

Month = Annotated[str, Path(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$")]
_BALANCES: Final[Order[Balance]] = Order("balances", lambda each: (each.account, each.holder), (str, str))


class MakerTermsSet(Body):
    """What the maker of a model gets for requests that end at `from` (the hour that begins next) or later: a
    share of what tenants pay for the model, its part of reserved capacity included, or a price for each
    billed token, in USD per million. A share of 0 ends it.
    """

    model: ModelName
    maker: Label
    share_percent: PercentText | None = None
    input: PriceText | None = None
    output: PriceText | None = None
    from_ms: Annotated[Moment | None, Field(alias="from")] = None

    def terms(self, now_ms: int) -> MakerTerms:
        """Raises Invalid unless it is one of both."""
        if (self.share_percent is None) == (self.input is None) or (self.input is None) != (
            self.output is None
        ):
            raise Invalid("Give `share_percent`, or `input` and `output`.", param="share_percent")
        try:
            prices = [None if each is None else parse_price(each) for each in (self.input, self.output)]
        except MoneyError as exc:
            raise Invalid(str(exc), param="input") from exc
        return MakerTerms(
            model=self.model,
            maker=self.maker,
            from_ms=-(-now_ms // HOUR_MS) * HOUR_MS if self.from_ms is None else self.from_ms,
            share_basis_points=None if self.share_percent is None else basis_points(self.share_percent),
            input_picousd=prices[0],
            output_picousd=prices[1],
        )


class BooksClose(Body):
    """Which month, in UTC."""

    month: Period


@router.post("/makers", status_code=201, response_model=MakerTermsAnswer)
def set_maker(body: MakerTermsSet, control: Control, response: Response) -> dict[str, Any]:
    """Set what is owed to a model's maker. What books were closed with stays."""
    with control.changing(response) as connection:
        models.find(connection, body.model)
        terms = body.terms(database_now_ms(connection))
        makers.set_terms(connection, terms)
    return _terms(terms)


@router.get("/makers", response_model=Listing[MakerTermsAnswer])
def list_makers(
    control: Control, asked: PageQuery, model: Annotated[ModelName | None, Query()] = None
) -> dict[str, Any]:
    """What is owed to makers, by model, the oldest terms first."""
    with control.reading() as connection:
        return listing(makers.list_page(connection, asked, model), lambda each: _terms(each[0]))


@router.post("/books", status_code=201, response_model=BooksAnswer)
def close(body: BooksClose, control: Control, response: Response) -> dict[str, Any]:
    """Close the books of a month: record what is owed to makers and providers, and what was absorbed. What
    comes later is in the next month's.
    """
    with control.changing(response) as connection:
        return _books(books.close_books(connection, body.month, now_ms=database_now_ms(connection)))


@router.get("/books", response_model=Listing[BalanceAnswer])
def list_balances(control: Control, asked: PageQuery) -> dict[str, Any]:
    """What each account of the ledger holds, by holder. All together are 0."""
    with control.reading() as connection:
        page = page_of(books.balances(connection), _BALANCES, asked)
    return listing(
        page, lambda each: {"account": each.account, "holder": each.holder, "usd": str(each.amount)}
    )


@router.get("/books/{month}", response_model=BooksAnswer)
def show(month: Month, control: Control) -> dict[str, Any]:
    """A closed month: what is owed to each maker."""
    with control.reading() as connection:
        return _books(books.find(connection, month))


def _books(closed: Books) -> dict[str, Any]:
    return {
        "month": closed.month,
        "closed_ms": closed.closed_ms,
        "statements": [
            {"maker": maker, **each} for maker, lines in sorted(closed.statements.items()) for each in lines
        ],
    }


def _terms(terms: MakerTerms) -> dict[str, Any]:
    share = terms.share_basis_points
    return {
        "model": terms.model,
        "maker": terms.maker,
        "from_ms": terms.from_ms,
        "share_percent": None if share is None else percent_text(share),
        "input": None if terms.input_picousd is None else price_string(terms.input_picousd),
        "output": None if terms.output_picousd is None else price_string(terms.output_picousd),
    }
