"""What requests cost us at providers: their own figures at the cost price that held when a request started.
It is worked out whenever somebody asks, because neither changes later: usage events and cost prices are
append-only, and a cost price never begins at a past moment that already has one.

To be joined with `usage_event`, by `outerjoin(COST_PRICE, true())`.
"""

from typing import Any, Final

from sqlalchemy import ColumnElement, Numeric, case, cast, func, or_

from billing.catalogue.price_book import COST
from billing.schema.ledger import TOLD, usage_event

_of = usage_event.c
# The price of an event that went to a provider: its instance's own, else the model's.
COST_PRICE: Final = (
    COST.select()
    .where(
        _of.provider.is_not(None),
        COST.prices.c.model == _of.model,
        or_(COST.prices.c.instance.is_(None), COST.prices.c.instance == _of.instance),
        COST.prices.c.valid_from_ms <= _of.started_ms,
    )
    .order_by(COST.prices.c.instance.is_(None), COST.prices.c.valid_from_ms.desc())
    .limit(1)
    .lateral("cost")
)


def _cost(tokens: ColumnElement[Any], price: ColumnElement[Any]) -> ColumnElement[Any]:
    return cast(tokens, Numeric(38)) * price


# In pico-dollars, as `Price.amount` has it; null where it is not known.
COST_AMOUNT: Final[ColumnElement[Any]] = case(
    (
        TOLD,
        _cost(_of.produced_prompt - _of.produced_cached - _of.produced_written, COST_PRICE.c.input_picousd)
        + _cost(_of.produced_cached, COST_PRICE.c.cached_input_picousd)
        + _cost(
            _of.produced_written,
            func.coalesce(COST_PRICE.c.cache_write_picousd, COST_PRICE.c.input_picousd),
        )
        + _cost(_of.produced_output, COST_PRICE.c.output_picousd),
    )
)
