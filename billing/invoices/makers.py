"""What is owed to the makers of models: a share of what tenants pay, or a price for each token. It knows no
HTTP.

Terms hold from a whole hour on, for requests that end then or later, so that sums by hour say what is owed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, insert, select, true

from billing.catalogue.price_book import hold_prices
from billing.moments import HOUR_MS
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, Invalid
from billing.schema.books import books, maker_terms
from billing.schema.ledger import usage_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class MakerTerms:
    """What the maker of a model gets from a moment on: a share (hundredths of a percent), or pico-dollars for
    each billed token.
    """

    model: str
    maker: str
    from_ms: int
    share_basis_points: int | None = None
    input_picousd: int | None = None
    output_picousd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What a maker gets for what a tenant used of a model, by one version of the terms. `exact` in
    pico-dollars.
    """

    maker: str
    model: str
    tenant: str
    contract: str
    prompt: int
    output: int
    revenue_picousd: int
    exact: Fraction


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
    return read_page(connection, query, _TERMS, lambda row: (_terms(row), row.version), asked)


def owed(connection: Connection, from_ms: int, until_ms: int) -> Sequence[Owed]:
    """For requests that ended in the hours of [from, until)."""
    return [_owed(row) for row in connection.execute(_query(from_ms // HOUR_MS, until_ms // HOUR_MS))]


def _query(first: int, last: int) -> Select[Any]:
    hour = usage_hour.c
    held = (
        select(maker_terms)
        .where(maker_terms.c.model == hour.model, maker_terms.c.from_hour <= hour.hour)
        .order_by(maker_terms.c.from_hour.desc(), maker_terms.c.version.desc())
        .limit(1)
        .lateral("held")
    )
    group = (
        held.c.maker, hour.model, hour.tenant, hour.contract, held.c.share_basis_points,
        held.c.input_picousd, held.c.output_picousd,
    )  # fmt: skip
    sums = (func.sum(hour[name]).label(name) for name in ("billed_prompt", "billed_output", "amount_picousd"))
    return (
        select(*group, *sums)
        .select_from(usage_hour.join(held, true()))
        .where(hour.hour >= first, hour.hour < last)
        .group_by(*group)
        .order_by(*group)
    )


def _owed(row: Row[Any]) -> Owed:
    revenue = int(row.amount_picousd)
    if row.share_basis_points is not None:
        exact = Fraction(revenue * row.share_basis_points, 10_000)
    else:
        exact = Fraction(
            int(row.billed_prompt) * row.input_picousd + int(row.billed_output) * row.output_picousd
        )
    return Owed(
        maker=row.maker,
        model=row.model,
        tenant=row.tenant,
        contract=row.contract,
        prompt=int(row.billed_prompt),
        output=int(row.billed_output),
        revenue_picousd=revenue,
        exact=exact,
    )


def _terms(row: Row[Any]) -> MakerTerms:
    return MakerTerms(
        model=row.model,
        maker=row.maker,
        from_ms=row.from_hour * HOUR_MS,
        share_basis_points=row.share_basis_points,
        input_picousd=row.input_picousd,
        output_picousd=row.output_picousd,
    )
