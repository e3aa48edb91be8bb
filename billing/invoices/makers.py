"""The terms of models' makers, and what is owed to them: a share of what tenants pay for a model, or a price
for each token. It knows no HTTP.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, exists, func, insert, select

from billing.invoices.paid_for_models import Owed, PaidFor, beside_tokens
from billing.ledger.maker_terms import MakerTerms, TermsInTime, of_tokens
from billing.ledger.usage_report import usage_between
from billing.moments import HOUR_MS
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, Invalid
from billing.schema.books import books, maker_terms
from billing.schema.locks import AdvisoryLock

_TERMS: Final[Order[tuple[MakerTerms, int]]] = Order(
    "makers",
    lambda each: (each[0].model, each[0].from_ms // HOUR_MS, each[1]),
    (str, int, int),
    (maker_terms.c.model, maker_terms.c.from_hour, maker_terms.c.version),
)


def hold_books(connection: Connection) -> None:
    """Let nobody else close books or set terms until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.BOOKS)))


def set_terms(connection: Connection, terms: MakerTerms) -> None:
    """Add a version. Raises Invalid unless it begins at a whole hour; Conflict for a time whose books are
    closed.
    """
    if terms.from_ms % HOUR_MS:
        raise Invalid("Terms of makers begin at a whole hour.", param="from")
    hold_books(connection)
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
    """Terms by model, the oldest first; without those in whose place others were set, from the same hour."""
    later = maker_terms.alias()
    replaced = (
        exists()
        .where(later.c.model == maker_terms.c.model, later.c.from_hour == maker_terms.c.from_hour)
        .where(later.c.version > maker_terms.c.version)
    )
    query = select(maker_terms).where(~replaced)
    if model is not None:
        query = query.where(maker_terms.c.model == model)
    return read_page(connection, query, _TERMS, lambda row: (MakerTerms.of(row), row.version), asked)


def owed(connection: Connection, from_ms: int, until_ms: int) -> Sequence[Owed]:
    """For requests that ended in the hours of [from, until), for capacity in it, and of what documents take
    off or give back: discounts where the period of the invoice begins, credit notes when they were issued.
    """
    terms = TermsInTime(connection)
    if not terms:
        return ()
    first_ms, last_ms = from_ms // HOUR_MS * HOUR_MS, -(-until_ms // HOUR_MS) * HOUR_MS
    of_hours = _of_tokens(connection, terms, first_ms, last_ms)
    return [*of_hours, *beside_tokens(connection, terms, from_ms, until_ms)]


def _of_tokens(connection: Connection, terms: TermsInTime, from_ms: int, until_ms: int) -> Iterator[Owed]:
    """Of each time in which no terms change, so that whole days of it are read from their sums."""
    for begins_ms, ends_ms in terms.spans(from_ms, until_ms):
        held = terms.held_at(begins_ms)
        usage = usage_between(None, begins_ms, ends_ms).c
        group = usage.model, usage.tenant, usage.contract
        names = ("billed_prompt", "billed_output", "amount_picousd")
        query = select(*group, *(func.sum(usage[name]).label(name) for name in names))
        query = query.where(usage.model.in_(held)).group_by(*group).order_by(*group)
        for row in connection.execute(query):
            prompt, output, paid = map(int, (row.billed_prompt, row.billed_output, row.amount_picousd))
            of = held[row.model]
            yield Owed(
                maker=of.maker,
                model=row.model,
                tenant=row.tenant,
                contract=row.contract,
                of=PaidFor.EACH_TOKEN if of.share_basis_points is None else PaidFor.TOKENS,
                prompt=prompt,
                output=output,
                paid=Fraction(paid),
                exact=of_tokens(of, prompt, output, paid),
            )
