"""Rates recorded requests by two price lists, so that what a change does is seen before it is made. It
changes nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import PriceBook
from billing.ledger.entries import price_scopes
from billing.schema.ledger import usage_event
from billing.wire.tokens import Tokens

SAMPLE_MAX: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A recorded request, as far as its price depends on it."""

    model: str
    tenant: str
    pool: str
    class_: str
    contract: str | None
    line: str | None
    decision: Mapping[str, Any] | None
    started_ms: int
    billed: Tokens


@dataclass(slots=True)
class Rated:
    """What requests of a model and class cost by each list. `unpriced`: without a price by the second."""

    requests: int = 0
    unpriced: int = 0
    before: Money = ZERO
    after: Money = ZERO


def sample(connection: Connection, models: Collection[str], most: int) -> list[Sampled]:
    """The newest billed requests of these models, `most` of each."""
    found: list[Sampled] = []
    of = usage_event.c
    for model in sorted(models):
        query = (
            select(usage_event)
            .where(of.model == model, of.kind == "request", of.billed_prompt + of.billed_output > 0)
            .order_by(of.recorded_ms.desc())
            .limit(most)
        )
        for row in connection.execute(query).mappings():
            billed = Tokens(
                row["billed_prompt"], row["billed_cached"], row["billed_output"], row["billed_written"]
            )
            found.append(
                Sampled(
                    model=model,
                    tenant=row["tenant"],
                    pool=row["pool"],
                    class_=row["class"],
                    contract=row["contract"],
                    line=row["line"],
                    decision=row["decision"],
                    started_ms=row["started_ms"],
                    billed=billed,
                )
            )
    return found


def rate(
    requests: Collection[Sampled], before: PriceBook, after: PriceBook, at_ms: int
) -> dict[tuple[str, str], Rated]:
    """What they would cost if they started at this moment, by model and class (`batch`: lines of batches)."""
    found: dict[tuple[str, str], Rated] = {}
    for request in requests:
        rated = found.setdefault((request.model, "batch" if request.line else request.class_), Rated())
        rated.requests += 1
        for book in (before, after):
            price = book.at(request.model, at_ms, price_scopes(request, book))
            if price is None:
                rated.unpriced += book is after
            elif book is before:
                rated.before += price.amount(request.billed)
            else:
                rated.after += price.amount(request.billed)
    return dict(sorted(found.items()))
