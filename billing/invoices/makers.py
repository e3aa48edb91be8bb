"""The terms of models' makers, and what is owed to them: a share of what tenants pay for a model, or a price
for each token. It knows no HTTP.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, true

from billing.catalogue.price_book import hold_prices
from billing.invoices.paid_for_models import Owed, PaidFor, beside_tokens
from billing.ledger.maker_terms import MakerTerms, TermsInTime, of_tokens, terms_held
from billing.moments import HOUR_MS
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, Invalid
from billing.schema.books import books, maker_terms
from billing.schema.ledger import usage_hour

_TERMS: Final[Order[tuple[MakerTerms, int]]] = Order(
    "makers",
    lambda each: (each[0].model, each[0].from_ms // HOUR_MS, each[1]),
    (str, int, int),
    (maker_terms.c.model, maker_terms.c.from_hour, maker_terms.c.version),
)


def set_terms(connection: Connection, terms: MakerTerms) -> None:
    """Add a version. Raises Invalid unless it begins at a whole hour; Conflict for a time whose books are
    closed.
    """
    if terms.from_ms % HOUR_MS:
        raise Invalid("Terms of makers begin at a whole hour.", param="from")
    # No books are closed until the caller's transaction ends.
    hold_prices(connection)
    closed = connection.execute(select(func.max(books.c.until_ms))).scalar_one()
    if closed is not None and terms.from_ms < closed:
        raise Conflict("The books of that month are closed.", param="from", code="books_closed")
    connection.execute(
        insert(maker_terms).values(
            model=terms.model,
            maker=terms.maker,
            from_hour=terms.from_ms // HOUR_MS,
            share_basis_points=terms.share_basis_points,
            input_picousd=terms.input_picousd,
            output_picousd=terms.output_picousd,
        )
    )


def list_page(connection: Connection, asked: PageRequest, model: str | None = None) -> Page[Any]:
    """Terms by model, the oldest first."""
    query = select(maker_terms)
    if model is not None:
        query = query.where(maker_terms.c.model == model)
    return read_page(connection, query, _TERMS, lambda row: (MakerTerms.of(row), row.version), asked)


def owed(connection: Connection, from_ms: int, until_ms: int) -> Sequence[Owed]:
    """For requests that ended in the hours of [from, until), for capacity in it, and of what documents take
    off or give back: discounts where the period of the invoice begins, credit notes when they were issued.
    """
    terms = TermsInTime(connection)
    if not terms:
        # To look for them in each hour takes as long as all the rest.
        return ()
    of_hours = _of_tokens(connection, from_ms // HOUR_MS, -(-until_ms // HOUR_MS))
    return [*of_hours, *beside_tokens(connection, terms, from_ms, until_ms)]


def _of_tokens(connection: Connection, first: int, last: int) -> Iterator[Owed]:
    hour = usage_hour.c
    held = terms_held(hour.model, hour.hour)
    group = (
        held.c.maker, hour.model, hour.tenant, hour.contract, held.c.share_basis_points,
        held.c.input_picousd, held.c.output_picousd,
    )  # fmt: skip
    sums = (func.sum(hour[name]).label(name) for name in ("billed_prompt", "billed_output", "amount_picousd"))
    query = (
        select(*group, *sums)
        .select_from(usage_hour.join(held, true()))
        .where(hour.hour >= first, hour.hour < last)
        .group_by(*group)
        .order_by(*group)
    )
    for row in connection.execute(query):
        prompt, output, paid = map(int, (row.billed_prompt, row.billed_output, row.amount_picousd))
        yield Owed(
            maker=row.maker,
            model=row.model,
            tenant=row.tenant,
            contract=row.contract,
            of=PaidFor.EACH_TOKEN if row.share_basis_points is None else PaidFor.TOKENS,
            prompt=prompt,
            output=output,
            paid=Fraction(paid),
            exact=of_tokens(row, prompt, output, paid),
        )
