"""Money is exact: strings and integers convert without loss, and nothing else is accepted."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.catalogue.money import PRICE_MAX_PICOUSD_PER_TOKEN, Money, MoneyError, parse_price, price_string


@given(st.integers(min_value=0, max_value=PRICE_MAX_PICOUSD_PER_TOKEN))
def test_every_price_survives_its_string(picousd: int) -> None:
    assert parse_price(price_string(picousd)) == picousd


@given(st.integers(min_value=-(10**37), max_value=10**37))
def test_every_amount_survives_its_string(picousd: int) -> None:
    text = str(Money(picousd))
    assert Money.parse(text) == Money(picousd)
    assert Fraction(text) * 10**12 == picousd


@given(st.decimals(min_value=0, max_value=1_000_000, places=6), st.integers(min_value=0, max_value=10**9))
def test_amount_of_tokens_is_price_times_tokens_exactly(price: Decimal, tokens: int) -> None:
    assert Decimal(str(Money(parse_price(f"{price:f}") * tokens))) == price * tokens / 10**6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "1e3",
        "1.0000001",
        "0x1",
        " 1",
        "1 ",
        "NaN",
        "inf",
        "1,5",
        "01",
        ".5",
        "1.",
        "１",
        "1000000.000001",
        "9" * 30,
    ],
)
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_price(text)


@pytest.mark.parametrize(
    ("text", "picousd"),
    [("0", 0), ("0.15", 150_000), ("2.5", 2_500_000), ("0.000001", 1), ("1000000", 10**12)],
)
def test_prices_as_written_on_price_lists(text: str, picousd: int) -> None:
    assert parse_price(text) == picousd


@pytest.mark.parametrize("wrong", [1.0, True, "1", Decimal(1)])
def test_an_amount_is_an_integer_and_nothing_else(wrong: object) -> None:
    with pytest.raises(TypeError):
        Money(wrong)  # type: ignore[arg-type]


def test_amounts_read_for_people() -> None:
    assert [str(Money(n)) for n in (0, 1, -1, 10**12, 1_500_000_000_000)] == [
        "0.00", "0.000000000001", "-0.000000000001", "1.00", "1.50",
    ]  # fmt: skip


def test_a_fraction_of_a_picodollar_from_sql_is_refused() -> None:
    with pytest.raises(MoneyError):
        Money.from_sql(Decimal("1.5"))
