"""Amounts of USD in the bodies of requests: decimal strings."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field, WithJsonSchema

from billing.catalogue.money import Money, MoneyError

# Scripts count in micro-dollars: far below where a Lua number is no longer exact.
_USD_MAX: Final = 10**9


def _usd(text: str) -> str:
    try:
        amount = Money.parse(text)
    except MoneyError as exc:
        raise ValueError(str(exc)) from exc
    if not 0 <= amount.picousd <= _USD_MAX * 10**12:
        raise ValueError(f"an amount is from 0 to {_USD_MAX} USD")
    return text


Amount = Annotated[
    str,
    Field(max_length=40),
    AfterValidator(_usd),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,10}(\.[0-9]{1,12})?$", "examples": ["1.00"]}),
]
