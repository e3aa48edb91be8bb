"""Money: whole pico-dollars, and the decimal strings in which it is written. It owns exactness; it knows no
table, tenant or model.

1 USD = 10^12 pico-dollars. A price has at most six decimals of USD per million tokens, so the price of one
token is a whole number of pico-dollars (`price × 10^6`) and an amount is a product of integers: nothing here
rounds and nothing is a float.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

PICOUSD_PER_USD: Final = 10**12
_USD_DECIMALS: Final = 12
_PRICE_DECIMALS: Final = 6
# A million USD per million tokens is a mistake in the units; below it a price and a product with any token
# count stay far inside the columns that hold them (BIGINT for a token's price, NUMERIC(38) for amounts).
PRICE_MAX_PICOUSD_PER_TOKEN: Final = 10**12
_PRICE = re.compile(r"(0|[1-9][0-9]{0,6})(?:\.([0-9]{1,6}))?", re.ASCII)
_USD = re.compile(r"(-?)(0|[1-9][0-9]{0,25})(?:\.([0-9]{1,12}))?", re.ASCII)


class MoneyError(ValueError):
    """A text that is not an exact amount or price."""


@dataclass(frozen=True, slots=True, order=True)
class Money:
    """An exact amount of USD, in pico-dollars."""

    picousd: int

    def __post_init__(self) -> None:
        if type(self.picousd) is not int:
            raise TypeError(f"an amount is a whole number of pico-dollars, not {self.picousd!r}")

    def __add__(self, other: "Money") -> "Money":
        return Money(self.picousd + other.picousd)

    def __sub__(self, other: "Money") -> "Money":
        return Money(self.picousd - other.picousd)

    def __neg__(self) -> "Money":
        return Money(-self.picousd)

    def __str__(self) -> str:
        """USD as an exact decimal string, with two decimals at least: `0.00`, `12.3456`."""
        return _decimal_string(self.picousd, _USD_DECIMALS, decimals_min=2)

    @classmethod
    def parse(cls, text: str) -> "Money":
        """Read what `str` writes: USD with at most 12 decimals."""
        match = _USD.fullmatch(text)
        if match is None:
            raise MoneyError(f"not an amount in USD: {text!r}")
        sign, whole, fraction = match.groups()
        picousd = int(whole) * PICOUSD_PER_USD + int((fraction or "").ljust(_USD_DECIMALS, "0"))
        return cls(-picousd if sign else picousd)

    @classmethod
    def from_sql(cls, amount: Decimal | int) -> "Money":
        """Read a NUMERIC of pico-dollars, which must be whole."""
        picousd = int(amount)
        if picousd != amount:
            raise MoneyError(f"not a whole number of pico-dollars: {amount}")
        return cls(picousd)


ZERO: Final = Money(0)


def parse_price(text: str) -> int:
    """Pico-dollars per token of a price in USD per million tokens (`"0.15"` → 150 000). At most six
    decimals, not negative.
    """
    match = _PRICE.fullmatch(text)
    if match is None:
        raise MoneyError(
            f"a price is USD per million tokens with at most {_PRICE_DECIMALS} decimals, not {text[:40]!r}"
        )
    whole, fraction = match.groups()
    picousd = int(whole) * 10**_PRICE_DECIMALS + int((fraction or "").ljust(_PRICE_DECIMALS, "0"))
    if picousd > PRICE_MAX_PICOUSD_PER_TOKEN:
        raise MoneyError(f"a price above 1000000 USD per million tokens is taken for a mistake: {text!r}")
    return picousd


def price_string(picousd_per_token: int) -> str:
    """The price that `parse_price` reads, in USD per million tokens, with two decimals at least."""
    return _decimal_string(picousd_per_token, _PRICE_DECIMALS, decimals_min=2)


def _decimal_string(amount: int, decimals: int, decimals_min: int) -> str:
    whole, fraction = divmod(abs(amount), 10**decimals)
    digits = str(fraction).rjust(decimals, "0").rstrip("0").ljust(decimals_min, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{digits}"
