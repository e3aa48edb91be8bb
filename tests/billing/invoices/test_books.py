"""The books of a month: what makers and providers are owed, and what was absorbed, each once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Engine, text

from billing.catalogue import models
from billing.catalogue.models import ModelSpec
from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import COST, set_price
from billing.economics import owed
from billing.invoices import makers
from billing.invoices.books import balances, close_books, find
from billing.invoices.makers import MakerTerms
from billing.ledger.accounts import Account, account_balance
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, record_events
from billing.refusals import Conflict, Invalid, NotFound
from billing.wire.ending import Ending
from tests.billing.events import event
from tests.billing.invoices.test_close import DECEMBER, HOUR_MS, ISSUED_MS, NOVEMBER, OCTOBER, Books
from tests.fixtures.gateway import wait_until


@pytest.fixture
def books(database: Engine, raw_redis: redis.Redis) -> Iterator[Books]:
    with database.begin() as connection:
        made = Books(connection, raw_redis)
        models.create(connection, ModelSpec(name="m1", context_tokens=4096))
        yield made


def terms(from_ms: int, share: int | None = None, **prices: int) -> MakerTerms:
    return MakerTerms(model="m1", maker="lab", from_ms=from_ms, share_basis_points=share, **prices)


def close(books: Books, month: str) -> list[dict[str, Any]]:
    closed = close_books(books.connection, month, now_ms=ISSUED_MS)
    return [dict(each) for lines in closed.statements.values() for each in lines]


def test_a_maker_gets_its_share_and_later_a_price_for_each_token(books: Books) -> None:
    """2 USD a request: 12.34 % of that are 0.2468. At 0.10 and 0.40 per million: 0.1 + 0.2."""
    makers.set_terms(books.connection, terms(OCTOBER, 1234))
    makers.set_terms(books.connection, terms(NOVEMBER, None, input_picousd=100_000, output_picousd=400_000))
    books.use(OCTOBER - 1)
    books.use(OCTOBER)
    books.use(NOVEMBER)
    (october,) = close(books, "2023-10")
    assert (october["model"], october["revenue"], october["amount"]) == ("m1", "2.00", "0.25")
    books.use(OCTOBER + 5)  # late
    (november,) = close(books, "2023-11")
    # 0.4936 for October and 0.30 for November, less what was stated.
    assert (november["owed_so_far"], november["amount"]) == ("0.79", "0.54")
    assert account_balance(books.connection, Account.MAKER, "lab/m1") == Money.parse("-0.79")
    assert account_balance(books.connection, Account.SHARE, "m1") == Money.parse("0.79")
    assert find(books.connection, "2023-11").statements["lab"][0] == november
    shares = owed.maker_shares(books.connection, (OCTOBER, NOVEMBER, DECEMBER))
    tenant = books.tenant.tenant_id
    assert shares == {(tenant, "m1", "", 0): 493_600_000_000, (tenant, "m1", "", 1): 300_000_000_000}
    assert check_ledger(books.connection) == []


def test_terms_of_makers_begin_at_a_whole_hour_and_in_no_closed_month(books: Books) -> None:
    with pytest.raises(Invalid):
        makers.set_terms(books.connection, terms(OCTOBER + 1, 1))
    close(books, "2023-10")
    with pytest.raises(Conflict):
        makers.set_terms(books.connection, terms(NOVEMBER - HOUR_MS, 1))
    makers.set_terms(books.connection, terms(NOVEMBER, 1))


def test_providers_and_what_was_absorbed_are_posted_once(books: Books) -> None:
    set_price(books.connection, "m1", input="0.5", cached_input="0.5", output="1", valid_from_ms=0, of=COST)
    bought = event("req_b", (10, 0, 5), started_ms=OCTOBER, ended_ms=OCTOBER + 10, instance="far")
    lost = event(
        "req_l", (10, 0, 5), Ending.ENGINE_DIED, started_ms=OCTOBER, ended_ms=OCTOBER + 10, tenant="ten_x"
    )
    bought = replace(bought, provider={"kind": "openai", "model": "x", "usage": {"prompt_tokens": 10}})
    record_events(books.connection, [ReceivedEvent.read(each.to_json()) for each in (bought, lost)])
    close(books, "2023-10")
    held = {(each.account, each.holder): each.amount.picousd for each in balances(books.connection)}
    assert held[Account.COST, "far"] == 10 * 500_000 + 5 * 1_000_000 == -held[Account.PROVIDER, "far"]
    absorbed = lost.absorbed.prompt * 1_000_000 + lost.absorbed.output * 2_000_000
    (reason,) = lost.absorbed.reasons
    assert held[Account.ABSORBED, reason] == absorbed == -held[Account.FORGONE, "m1"]
    assert sum((each.amount for each in balances(books.connection)), ZERO) == ZERO
    close(books, "2023-11")
    assert held == {(each.account, each.holder): each.amount.picousd for each in balances(books.connection)}


def test_months_are_closed_in_their_order_when_they_are_over(books: Books) -> None:
    with pytest.raises(NotFound):
        find(books.connection, "2023-10")
    close(books, "2023-10")
    for month, error in (("2023-10", Conflict), ("2023-12", Conflict), ("2999-01", Conflict), ("x", Invalid)):
        with pytest.raises(error):
            close_books(books.connection, month, now_ms=ISSUED_MS)


def test_terms_of_makers_wait_while_the_books_are_closed(database: Engine, raw_redis: redis.Redis) -> None:
    """They would hold for a month of which the maker's statement does not know them."""
    with database.begin() as connection:
        models.create(connection, ModelSpec(name="m1", context_tokens=4096))

    def set_them() -> None:
        with database.begin() as connection:
            makers.set_terms(connection, terms(OCTOBER, 1))

    def waits() -> bool:
        with database.connect() as connection:
            return bool(connection.execute(text("select count(*) from pg_locks where not granted")).scalar())

    with database.connect() as closing, ThreadPoolExecutor(1) as threads:
        close_books(closing, "2023-10", now_ms=ISSUED_MS)
        setting = threads.submit(set_them)
        wait_until(lambda: setting.done() or waits(), "terms that wait")
        closing.commit()
        with pytest.raises(Conflict):
            setting.result()
