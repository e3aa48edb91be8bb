"""The ledger: exactly once, balanced, priced by what held, append-only."""

import random
import uuid
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from billing.catalogue.money import Money
from billing.catalogue.price_book import Price, PriceBook, set_price
from billing.ledger.accounts import Posting, UnbalancedError, account_balance, check_balanced
from billing.ledger.entries import (
    Pricing,
    ReceivedEvent,
    postings,
    price_event,
    record_events,
)
from billing.schema.catalogue import api_key_use
from billing.schema.ledger import ledger_posting, ledger_transaction, usage_conflict, usage_event, usage_total
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event

PRICE = Price(
    price_id=1,
    model="m1",
    valid_from_ms=0,
    input_picousd=100_000,
    cached_input_picousd=10_000,
    output_picousd=400_000,
)


def received(*events: UsageEvent) -> list[ReceivedEvent]:
    return [ReceivedEvent.read(item.to_json()) for item in events]


def priced_database(database: Engine) -> Engine:
    with database.begin() as connection:
        set_price(connection, "m1", input="0.10", cached_input="0.01", output="0.40", valid_from_ms=0)
    return database


@given(
    st.integers(0, 10**9).flatmap(
        lambda prompt: st.tuples(st.just(prompt), st.integers(0, prompt), st.integers(1, 10**9))
    ),
    st.tuples(*[st.integers(0, 10**12)] * 3),
)
def test_postings_of_any_request_sum_to_zero(
    tokens: tuple[int, int, int], prices: tuple[int, int, int]
) -> None:
    recorded = price_event(
        event(tokens=tokens),
        PriceBook(
            [
                Price(
                    price_id=1,
                    model="m1",
                    valid_from_ms=0,
                    input_picousd=prices[0],
                    cached_input_picousd=prices[1],
                    output_picousd=prices[2],
                )
            ]
        ),
    )
    lines = postings(recorded)
    assert sum(line.amount.picousd for line in lines) == 0
    prompt, cached, output = tokens
    assert recorded.amount.picousd == (prompt - cached) * prices[0] + cached * prices[1] + output * prices[2]


def test_unbalanced_postings_are_a_bug() -> None:
    with pytest.raises(UnbalancedError):
        check_balanced([Posting("receivable", "t", Money(2)), Posting("revenue", "m", Money(-1))])


def test_the_database_refuses_an_unbalanced_transaction(database: Engine) -> None:
    priced_database(database)
    with database.begin() as connection:
        record_events(connection, received(event(tokens=(0, 0, 5), ending=Ending.ENGINE_DIED)))
        transaction_id = connection.execute(select(ledger_transaction.c.transaction_id)).scalar_one()
    line = {
        "transaction_id": transaction_id,
        "line": 0,
        "account": "receivable",
        "holder": "t",
        "amount_picousd": 1,
    }
    with pytest.raises(IntegrityError, match="sum to 1"), database.begin() as connection:
        connection.execute(insert(ledger_posting), line)


@pytest.mark.parametrize("table", ["usage_event", "ledger_transaction", "ledger_posting", "price"])
@pytest.mark.parametrize("statement", ["delete from {}", "truncate {} cascade"])
def test_facts_are_never_taken_back(database: Engine, table: str, statement: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"), database.begin() as connection:
        connection.execute(text(statement.format(table)))


def test_a_request_costs_its_tokens_at_its_price(database: Engine) -> None:
    priced_database(database)
    with database.begin() as connection:
        recorded = record_events(connection, received(event(tokens=(1000, 200, 50))))
        assert recorded.events[0].amount == Money(800 * 100_000 + 200 * 10_000 + 50 * 400_000)
        assert account_balance(connection, "receivable", "ten_a") == recorded.events[0].amount
        assert account_balance(connection, "revenue", "m1") == -recorded.events[0].amount


def test_the_price_is_the_one_at_the_start_of_the_request(database: Engine) -> None:
    with database.begin() as connection:
        old = set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=1000).price
        new = set_price(
            connection, "m1", input="2", cached_input="2", output="2", valid_from_ms=4_000_000_000_000
        ).price
        recorded = record_events(
            connection,
            received(
                event("a", started_ms=999), event("b", started_ms=1000), event("c",
                started_ms=3_999_999_999_999, ended_ms=4_000_000_000_001),
                event("d", started_ms=4_000_000_000_000),
            ),
        )  # fmt: skip
    assert [(item.pricing, item.price) for item in recorded.events] == [
        (Pricing.UNPRICED, None), (Pricing.PRICED, old), (Pricing.PRICED, old), (Pricing.PRICED, new),
    ]  # fmt: skip


def test_usage_in_doubt_has_no_amount_and_absorbed_usage_neither(database: Engine) -> None:
    priced_database(database)
    with database.begin() as connection:
        recorded = record_events(
            connection,
            received(event("a", anomaly="usage_missing"), event("b", ending=Ending.ENGINE_DIED), event("c")),
        )
        count = connection.execute(select(func.count()).select_from(ledger_posting)).scalar_one()
    assert [item.pricing for item in recorded.events] == [
        Pricing.QUARANTINED,
        Pricing.NOTHING_BILLED,
        Pricing.PRICED,
    ]
    assert count == 2


def test_a_key_was_last_used_when_its_latest_request_ended(database: Engine) -> None:
    for number, ended_ms in enumerate((1_700_000_005_000, 1_700_000_009_000, 1_700_000_007_000)):
        with database.begin() as connection:
            record_events(connection, received(event(f"r{number}", ended_ms=ended_ms)))
    with database.connect() as connection:
        assert connection.execute(select(api_key_use)).all() == [("key_a", 1_700_000_009_000)]


def test_a_free_model_is_priced_at_nothing(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="0", cached_input="0", output="0", valid_from_ms=0)
        recorded = record_events(connection, received(event()))
    assert recorded.events[0].pricing is Pricing.PRICED
    assert recorded.events[0].amount == Money(0)


def test_the_second_of_two_differing_events_is_evidence_and_the_first_counts(database: Engine) -> None:
    priced_database(database)
    with database.begin() as connection:
        first = record_events(
            connection, received(event("a", tokens=(10, 0, 5)), event("a", tokens=(10, 0, 6)))
        )
    with database.begin() as connection:
        second = record_events(
            connection, received(event("a", tokens=(10, 0, 7)), event("a", tokens=(10, 0, 5)))
        )
        assert connection.execute(select(usage_event.c.billed_output)).scalars().all() == [5]
        assert connection.execute(select(func.count()).select_from(usage_conflict)).scalar_one() == 2
    assert (len(first.events), first.conflicts, first.duplicates) == (1, ("a",), 0)
    assert (len(second.events), second.conflicts, second.duplicates) == (0, ("a",), 1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_any_order_and_any_duplicates_give_the_same_totals(
    database: Engine, picks: list[int], batch: int, shuffle: random.Random
) -> None:
    # Each example has its own ids and its own instance: the tables cannot be emptied.
    run = uuid.uuid4().hex
    known = {
        pick: event(f"{run}_{pick}", tokens=(pick * 10, pick, pick + 1), instance=run, tenant=run)
        for pick in set(picks)
    }
    deliveries = picks + list(known)
    shuffle.shuffle(deliveries)
    with database.connect() as connection:
        if connection.execute(text("select count(*) from price")).scalar_one() == 0:
            set_price(connection, "m1", input="0.10", cached_input="0.01", output="0.40", valid_from_ms=0)
            connection.commit()
    for start in range(0, len(deliveries), batch):
        with database.begin() as connection:
            record_events(connection, received(*(known[pick] for pick in deliveries[start : start + batch])))
    with database.connect() as connection:
        total = connection.execute(select(usage_total).where(usage_total.c.instance == run)).one()
        owed = account_balance(connection, "receivable", run)
    assert (total.billed_prompt, total.billed_output) == _sums(list(known.values()))
    assert owed.picousd == sum(PRICE.amount(item.billed).picousd for item in known.values())


def _sums(events: Sequence[UsageEvent]) -> tuple[int, int]:
    return sum(item.billed.prompt for item in events), sum(item.billed.output for item in events)
