"""Prices: append-only, dated, and never changing what a past moment costs."""

import pytest
from sqlalchemy import Engine

from billing.price_book import Price, PriceBook, list_prices, set_price
from billing.refusals import Conflict, Invalid

FUTURE_MS = 4_000_000_000_000


def test_a_price_holds_from_its_first_millisecond_until_the_next_one() -> None:
    first, second = Price(1, "m", 1000, 1, 1, 1), Price(2, "m", 2000, 2, 2, 2)
    book = PriceBook([second, first])
    assert [book.at("m", moment) for moment in (999, 1000, 1999, 2000)] == [None, first, first, second]
    assert book.at("other", 5000) is None


def test_a_price_without_a_date_holds_from_now(database: Engine) -> None:
    with database.begin() as connection:
        first = set_price(connection, "m", input="0.15", cached_input="0.075", output="0.6")
    with database.begin() as connection:
        second = set_price(connection, "m", input="0.2", cached_input="0.1", output="0.7")
    assert 1_700_000_000_000 < first.valid_from_ms < second.valid_from_ms
    assert (first.input_picousd, first.cached_input_picousd, first.output_picousd) == (150_000, 75_000, 600_000)


def test_a_future_price_may_be_set_and_replaced_by_a_nearer_one(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m", input="1", cached_input="1", output="1", valid_from_ms=FUTURE_MS)
        set_price(connection, "m", input="2", cached_input="2", output="2", valid_from_ms=FUTURE_MS - 1000)
        assert len(list_prices(connection, "m")) == 2


def test_a_moment_that_has_a_price_keeps_it(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m", input="1", cached_input="1", output="1", valid_from_ms=1000)
        with pytest.raises(Conflict):
            set_price(connection, "m", input="2", cached_input="2", output="2", valid_from_ms=2000)
        with pytest.raises(Conflict):
            set_price(connection, "m", input="2", cached_input="2", output="2", valid_from_ms=1000)
        set_price(connection, "m", input="2", cached_input="2", output="2", valid_from_ms=500)


@pytest.mark.parametrize("field", ["input", "cached_input", "output"])
def test_a_text_that_is_no_price_is_refused_by_its_name(database: Engine, field: str) -> None:
    texts = {"input": "1", "cached_input": "1", "output": "1"} | {field: "-0.1"}
    with database.begin() as connection, pytest.raises(Invalid) as refusal:
        set_price(connection, "m", **texts)
    assert refusal.value.param == field
