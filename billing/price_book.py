"""Prices per model with validity dates, append-only. Owns which price holds at a moment; knows no event and no ledger.

A price holds from its `valid_from_ms` until the next one of its model. What was priced stays priced: a new price never starts at a
moment in the past that already has one, and requests recorded before their model had a price stay `unpriced`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Connection, RowMapping, column, func, insert, select

from billing.money import Money, MoneyError, parse_price
from billing.refusals import Conflict, Invalid
from billing.schema.ledger import price as price_table
from billing.tokens import Tokens

# Shared by the batches that are being priced, exclusive for who sets a price. Not a lock of the table: reports need not wait.
_LOCK: Final = 7_461_618
_NOW_MS: Final = select(
    (func.extract("epoch", func.clock_timestamp()) * 1000).cast(BigInteger).label("now_ms"),
)


@dataclass(frozen=True, slots=True)
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


class PriceBook:
    """The prices of some models as one SQL transaction sees them."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._newest_first: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda price: -price.valid_from_ms):
            self._newest_first.setdefault(price.model, []).append(price)

    def at(self, model: str, moment_ms: int) -> Price | None:
        """The price that holds for a request of this model that starts now, or None: it is then unpriced, never guessed."""
        for price in self._newest_first.get(model, ()):
            if price.valid_from_ms <= moment_ms:
                return price
        return None


def read_price_book(connection: Connection, models: Iterable[str]) -> PriceBook:
    """The prices of these models. Until the transaction ends no price can be set, so none is missed by what it records."""
    connection.execute(select(func.pg_advisory_xact_lock_shared(_LOCK)))
    rows = connection.execute(select(price_table).where(price_table.c.model.in_(sorted(set(models))))).mappings()
    return PriceBook(_price(row) for row in rows)


def list_prices(connection: Connection, model: str | None = None) -> list[Price]:
    """All prices, of one model or of all, the newest of each first."""
    query = select(price_table).order_by(price_table.c.model, price_table.c.valid_from_ms.desc())
    if model is not None:
        query = query.where(price_table.c.model == model)
    return [_price(row) for row in connection.execute(query).mappings()]


def set_price(
    connection: Connection, model: str, *, input: str, cached_input: str, output: str, valid_from_ms: int | None = None
) -> Price:
    """Append a price (USD per million tokens, decimal strings); without a date it holds from now on. The caller commits.

    Raises `Invalid` for a text that is no price, `Conflict` where it would change what a moment in the past costs.
    """
    amounts: dict[str, int] = {}
    for name, given in (("input", input), ("cached_input", cached_input), ("output", output)):
        try:
            amounts[f"{name}_picousd"] = parse_price(given)
        except MoneyError as exc:
            raise Invalid(str(exc), param=name) from exc
    # Waits for the batches being recorded and holds the next ones back: "from now on" is then true to the millisecond.
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    now_ms: int = connection.execute(_NOW_MS).scalar_one()
    start_ms = now_ms if valid_from_ms is None else valid_from_ms
    known = list_prices(connection, model)
    if any(price.valid_from_ms == start_ms for price in known):
        raise Conflict(f"model {model!r} already has a price from that moment", param="from")
    if start_ms < now_ms and PriceBook(known).at(model, start_ms) is not None:
        raise Conflict(
            f"model {model!r} already has a price at that moment, and what was priced stays priced",
            param="from",
            code="already_priced",
        )
    row = connection.execute(
        insert(price_table).values(model=model, valid_from_ms=start_ms, **amounts).returning(*price_table.c)
    )
    return _price(row.mappings().one())


def _price(row: RowMapping) -> Price:
    return Price(
        row["price_id"], row["model"], row["valid_from_ms"],
        row["input_picousd"], row["cached_input_picousd"], row["output_picousd"],
    )  # fmt: skip


def prices_by_id(connection: Connection, price_ids: Sequence[int]) -> dict[int, Price]:
    """These prices, whatever their dates: what a recorded transaction names."""
    rows = connection.execute(select(price_table).where(column("price_id").in_(price_ids))).mappings()
    return {row["price_id"]: _price(row) for row in rows}
