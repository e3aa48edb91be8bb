"""Prices: append-only, dated, and never changing what a past moment costs."""

import pytest
from sqlalchemy import Engine

from billing.catalogue.price_book import (
    Price,
    PriceBook,
    for_sale_from,
    list_prices,
    set_price,
    withdraw_price,
)
from billing.refusals import Conflict, Invalid, NotFound

FUTURE_MS = 4_000_000_000_000


def test_a_price_holds_from_its_first_millisecond_until_the_next_one() -> None:
    first, second = (
        Price(
            price_id=1,
            model="m",
            valid_from_ms=1000,
            input_picousd=1,
            cached_input_picousd=1,
            output_picousd=1,
        ),
        Price(
            price_id=2,
            model="m",
            valid_from_ms=2000,
            input_picousd=2,
            cached_input_picousd=2,
            output_picousd=2,
        ),
    )
    book = PriceBook([second, first])
    assert [book.at("m", moment) for moment in (999, 1000, 1999, 2000)] == [None, first, first, second]
    assert book.at("other", 5000) is None


def test_a_price_without_a_date_holds_from_now(database: Engine) -> None:
    with database.begin() as connection:
        first = set_price(connection, "m", input="0.15", cached_input="0.075", output="0.6").price
    with database.begin() as connection:
        second = set_price(connection, "m", input="0.2", cached_input="0.1", output="0.7").price
    assert 1_700_000_000_000 < first.valid_from_ms < second.valid_from_ms
    assert (first.input_picousd, first.cached_input_picousd, first.output_picousd) == (
        150_000,
        75_000,
        600_000,
    )


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


def test_a_future_price_is_replaced_or_withdrawn_and_a_past_one_never(database: Engine) -> None:
    with database.begin() as connection:
        now = set_price(connection, "m", input="1", cached_input="1", output="1").price
        slip = set_price(connection, "m", input="100", cached_input="1", output="1", valid_from_ms=FUTURE_MS)
        right = set_price(connection, "m", input="2", cached_input="1", output="1", valid_from_ms=FUTURE_MS)
        assert (slip.replaces, right.replaces) == (None, slip.price)
        assert list_prices(connection, "m") == [right.price, now]
        assert withdraw_price(connection, right.price.price_id) == right.price
        assert list_prices(connection, "m") == [now]
        for gone in (slip.price, right.price):
            with pytest.raises(NotFound):
                withdraw_price(connection, gone.price_id)
        with pytest.raises(Conflict):
            withdraw_price(connection, now.price_id)


@pytest.mark.parametrize(
    ("output", "asks"), [("10", False), ("10.01", True), ("0.1", False), ("0.09", True), ("0", True)]
)
def test_a_change_by_more_than_ten_times_has_to_be_confirmed(
    database: Engine, output: str, asks: bool
) -> None:
    with database.begin() as connection:
        set_price(connection, "m", input="1", cached_input="1", output="1", confirmed=False)
    with database.begin() as connection:
        if asks:
            with pytest.raises(Conflict) as refused:
                set_price(connection, "m", input="1", cached_input="1", output=output, confirmed=False)
            assert refused.value.code == "price_changes_much"
        else:
            set_price(connection, "m", input="1", cached_input="1", output=output, confirmed=False)
        set_price(connection, "m", input="1", cached_input="1", output=output, valid_from_ms=FUTURE_MS)


def test_now_is_by_the_clock_that_is_asked(database: Engine) -> None:
    with database.begin() as connection:
        assert (
            set_price(
                connection, "m", input="1", cached_input="1", output="1", now_ms=lambda: 7
            ).price.valid_from_ms
            == 7
        )
        later = set_price(
            connection, "m", input="1", cached_input="1", output="1", valid_from_ms=9, now_ms=lambda: 8
        ).price
        assert withdraw_price(connection, later.price_id, now_ms=lambda: 8) == later
        with pytest.raises(Conflict):
            set_price(
                connection, "m", input="1", cached_input="1", output="1", valid_from_ms=8, now_ms=lambda: 9
            )


def test_a_model_is_for_sale_from_its_first_price_on(database: Engine) -> None:
    with database.begin() as connection:
        assert for_sale_from(connection) == {}
        only = set_price(
            connection, "m", input="1", cached_input="1", output="1", valid_from_ms=FUTURE_MS
        ).price
        set_price(connection, "n", input="1", cached_input="1", output="1", valid_from_ms=1000)
        set_price(connection, "n", input="1", cached_input="1", output="1", valid_from_ms=FUTURE_MS)
        assert for_sale_from(connection) == {"m": FUTURE_MS, "n": 1000}
        withdraw_price(connection, only.price_id)
        assert for_sale_from(connection) == {"n": 1000}
