"""Prices per model with validity dates, append-only. It owns which price holds at a moment; it knows no event
and no ledger.

A price holds from its `valid_from_ms` until the next one of its model. Priced requests stay priced: a new
price never starts at a past moment that already has one, and only a price that does not hold yet can be
withdrawn or replaced. Requests recorded before their model had a price stay `unpriced` until `backfill`
prices them. Moments are by Redis's clock, like the requests'.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, RowMapping, column, func, insert, select

from billing.catalogue import outbox
from billing.catalogue.money import Money, MoneyError, parse_price, price_string
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.clock import database_now_ms
from billing.schema.ledger import price as price_table
from billing.schema.ledger import price_withdrawal
from billing.schema.locks import AdvisoryLock
from billing.wire.tokens import Tokens

# A greater change is more likely a mistake than intended.
_FACTOR_UNASKED: Final = 10
_STANDS: Final = price_table.c.price_id.not_in(select(price_withdrawal.c.price_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One price of a model, in whole pico-dollars per token."""

    price_id: int
    model: str
    valid_from_ms: int
    input_picousd: int
    cached_input_picousd: int
    output_picousd: int

    def amount(self, tokens: Tokens) -> Money:
        """What these tokens cost; `cached` is a part of `prompt` and has its own price."""
        uncached = tokens.prompt - tokens.cached
        return Money(
            uncached * self.input_picousd
            + tokens.cached * self.cached_input_picousd
            + tokens.output * self.output_picousd
        )


_NEWEST_OF_EACH_FIRST: Final[Order[Price]] = Order(
    "prices",
    lambda price: (price.model, -price.valid_from_ms, price.price_id),
    (str, int, int),
    (price_table.c.model, -price_table.c.valid_from_ms, price_table.c.price_id),
)


class PriceBook:
    """The prices of some models as one SQL transaction sees them."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._newest_first: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda price: -price.valid_from_ms):
            self._newest_first.setdefault(price.model, []).append(price)

    def at(self, model: str, moment_ms: int) -> Price | None:
        """The price that holds for a request of this model that starts now, or None: it is then unpriced,
        never guessed.
        """
        for price in self._newest_first.get(model, ()):
            if price.valid_from_ms <= moment_ms:
                return price
        return None


def read_price_book(connection: Connection, models: Iterable[str]) -> PriceBook:
    """The prices of these models. No price can be set until the transaction ends, so the caller records with
    all of them.
    """
    connection.execute(select(func.pg_advisory_xact_lock_shared(AdvisoryLock.PRICES)))
    named = price_table.c.model.in_(sorted(set(models)))
    rows = connection.execute(select(price_table).where(named, _STANDS)).mappings()
    return PriceBook(_price(row) for row in rows)


def list_prices(connection: Connection, model: str | None = None) -> list[Price]:
    """All prices that were not withdrawn, of one model or of all, the newest of each first."""
    query = (
        select(price_table).where(_STANDS).order_by(price_table.c.model, price_table.c.valid_from_ms.desc())
    )
    if model is not None:
        query = query.where(price_table.c.model == model)
    return [_price(row) for row in connection.execute(query).mappings()]


def list_page(connection: Connection, asked: PageRequest, model: str | None = None) -> Page[Price]:
    """The same by pages."""
    query = select(price_table).where(_STANDS)
    if model is not None:
        query = query.where(price_table.c.model == model)
    return read_page(connection, query, _NEWEST_OF_EACH_FIRST, lambda row: _price(row._mapping), asked)


def for_sale_from(connection: Connection) -> dict[str, int]:
    """When each model has a price from; a model without a price is missing."""
    query = select(price_table.c.model, func.min(price_table.c.valid_from_ms)).where(_STANDS)
    return {row[0]: row[1] for row in connection.execute(query.group_by(price_table.c.model))}


def hold_prices(connection: Connection) -> None:
    """Wait for batches that are being recorded, and block new ones until the transaction ends: no price
    changes, and nothing is priced.
    """
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.PRICES)))


@dataclass(frozen=True, slots=True)
class SetPrice:
    """A price that was set, and the price that it replaced before that took effect."""

    price: Price
    replaces: Price | None = None


def set_price(
    connection: Connection,
    model: str,
    *,
    input: str,
    cached_input: str,
    output: str,
    valid_from_ms: int | None = None,
    confirmed: bool = True,
    now_ms: Callable[[], int] | None = None,
) -> SetPrice:
    """Append a price (USD per million tokens, decimal strings); without a date it holds from now on. The
    caller commits. `now_ms` reads Redis's clock. It replaces a future price for the same moment.

    Raises `Invalid` for a text that is not a price; `Conflict` if it would change the price of a past moment,
    and, unless `confirmed`, if a token would cost over ten times more or less.
    """
    amounts: dict[str, int] = {}
    for name, given in (("input", input), ("cached_input", cached_input), ("output", output)):
        try:
            amounts[f"{name}_picousd"] = parse_price(given)
        except MoneyError as exc:
            raise Invalid(str(exc), param=name) from exc
    hold_prices(connection)
    # Read under the lock, so that "from now on" is true to the millisecond.
    now = database_now_ms(connection) if now_ms is None else now_ms()
    start_ms = now if valid_from_ms is None else valid_from_ms
    known = list_prices(connection, model)
    same = next((price for price in known if price.valid_from_ms == start_ms), None)
    before = PriceBook(price for price in known if price is not same).at(model, start_ms)
    if same is not None and start_ms <= now:
        raise Conflict(
            f"model {model!r} already has a price from that moment", param="from", code="already_priced"
        )
    if start_ms < now and before is not None:
        raise Conflict(
            f"model {model!r} already has a price at that moment, and what was priced stays priced",
            param="from",
            code="already_priced",
        )
    if not confirmed:
        _refuse_unasked(before or same, amounts)
    if same is not None:
        connection.execute(insert(price_withdrawal).values(price_id=same.price_id))
    row = connection.execute(
        insert(price_table).values(model=model, valid_from_ms=start_ms, **amounts).returning(*price_table.c)
    )
    outbox.record(connection, ChangeKind.MODEL, model)
    return SetPrice(_price(row.mappings().one()), same)


def withdraw_price(
    connection: Connection, price_id: int, *, now_ms: Callable[[], int] | None = None
) -> Price:
    """Withdraw a price that does not hold yet. Raises NotFound; Conflict for a price that holds or has
    held.
    """
    hold_prices(connection)
    found = next((price for price in list_prices(connection) if price.price_id == price_id), None)
    if found is None:
        raise NotFound(f"There is no price {price_id}, or it has been withdrawn.", param="price_id")
    if found.valid_from_ms <= (database_now_ms(connection) if now_ms is None else now_ms()):
        message = "This price holds or has held: what was priced stays priced. Set another one, from now on."
        raise Conflict(message, param="price_id", code="already_priced")
    connection.execute(insert(price_withdrawal).values(price_id=price_id))
    outbox.record(connection, ChangeKind.MODEL, found.model)
    return found


def _refuse_unasked(before: Price | None, amounts: dict[str, int]) -> None:
    if before is None:
        return
    for name, now in amounts.items():
        was: int = getattr(before, name)
        if max(was, now) > _FACTOR_UNASKED * min(was, now):
            what = name.removesuffix("_picousd").replace("_", " ")
            raise Conflict(
                f"The price of {what} would change from {price_string(was)} to {price_string(now)}, by more "
                f"than {_FACTOR_UNASKED} times.",
                param="confirmed",
                code="price_changes_much",
            )


def _price(row: RowMapping) -> Price:
    return Price(
        price_id=row["price_id"],
        model=row["model"],
        valid_from_ms=row["valid_from_ms"],
        input_picousd=row["input_picousd"],
        cached_input_picousd=row["cached_input_picousd"],
        output_picousd=row["output_picousd"],
    )


def prices_by_id(connection: Connection, price_ids: Sequence[int]) -> dict[int, Price]:
    """These prices, whatever their dates, as recorded transactions name them."""
    rows = connection.execute(select(price_table).where(column("price_id").in_(price_ids))).mappings()
    return {row["price_id"]: _price(row) for row in rows}
