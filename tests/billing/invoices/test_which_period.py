"""Which period a request is in, and which period is the first."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
import redis
from sqlalchemy import Engine, text

from billing.catalogue.money import ZERO, Money
from billing.contracts import store as contracts
from billing.invoices.close import compute_again
from billing.invoices.lines import Terms
from billing.invoices.next_period import next_period
from billing.invoices.periods import period
from billing.invoices.terms import set_capacity_price, set_terms
from billing.ledger.entries import record_events
from tests.billing.invoices.test_close import DECEMBER, HOUR_MS, ISSUED_MS, NOVEMBER, OCTOBER, Books
from tests.billing.ledger.test_price_scopes import OURS, sign


@pytest.fixture
def books(database: Engine, raw_redis: redis.Redis) -> Iterator[Books]:
    with database.begin() as connection:
        yield Books(connection, raw_redis)


@pytest.mark.parametrize(
    "zone",
    ["Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago"],
)
def test_fault_40_around_midnights_and_changes_of_the_clock_each_request_is_on_one_invoice(
    database: Engine, raw_redis: redis.Redis, zone: str
) -> None:
    """Each moment is used once, by its own number of tokens. The clock of Berlin is changed on 29 October, of
    Lord Howe (by half an hour) on 1 October, of Santiago on 3 September.
    """
    names = ["2023-08", "2023-09", "2023-10", "2023-11"]
    changes = {
        int(datetime(2023, month, day, hour, tzinfo=UTC).timestamp()) * 1000
        for month, day in ((9, 3), (10, 1), (10, 29))
        for hour in range(24)
    }
    edges = [period(name, 1, zone)[0] for name in names] + [period(names[-1], 1, zone)[1]]
    around = (-HOUR_MS, -HOUR_MS // 2, -1, 0, 1, HOUR_MS // 2, HOUR_MS)
    moments = sorted(changes | {edge + by for edge in edges for by in around})
    moments = [moment_ms for moment_ms in moments if edges[0] <= moment_ms < edges[-1]]
    with database.begin() as connection:
        books = Books(connection, raw_redis)
        books.tenant = replace(books.tenant, time_zone=zone)
        expected = dict.fromkeys(names, 0)
        used = [books.request(moment_ms, (0, 0, index)) for index, moment_ms in enumerate(moments, 1)]
        record_events(connection, used[::-1])
        for index, moment_ms in enumerate(moments, 1):
            local = datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(zone))
            expected[f"{local.year}-{local.month:02d}"] += index
        made = [books.close(name) for name in names]
        counted = {
            each.period: sum(line["tokens"] for line in json.loads(each.document)["lines"]) for each in made
        }
        assert counted == expected
        # The clock was an hour slow: what ended before the period's end is late, and on the next one.
        books.use(edges[-1] - HOUR_MS, (0, 0, 7))
        late = json.loads(books.close("2023-12").document)["lines"]
        assert [(line["period"], line["tokens"]) for line in late] == [("2023-11", 7)]
        for each in made:
            assert compute_again(connection, each.number) == each.document
        exact = sum(
            (Money.parse(line["exact"]) for each in made for line in json.loads(each.document)["lines"]), ZERO
        )
        assert exact == Money(sum(expected.values()) * 2_000_000)


def test_fault_47_in_whatever_order_usage_was_recorded_the_invoice_is_the_same(books: Books) -> None:
    moments = [(OCTOBER + day * HOUR_MS, day) for day in range(1, 6)]
    said = []
    for order in (moments, moments[::-1], moments[3:] + moments[:3]):
        with books.connection.begin_nested() as done:
            for moment_ms, index in order:
                books.use(moment_ms, (index, 0, 10 * index), project=f"prj_{index % 2}", class_="flex")
            document = json.loads(books.close("2023-10").document)
            said.append({name: document[name] for name in document if name != "ledger_upto"})
            done.rollback()
    assert said[0] == said[1] == said[2]
    assert len(said[0]["lines"]) == 4


@pytest.mark.parametrize("since", [0, OCTOBER - 40 * 24 * HOUR_MS, OCTOBER, OCTOBER + 20 * 24 * HOUR_MS])
@pytest.mark.parametrize("days_on", [0, 14, 29])
def test_whatever_its_terms_the_first_period_has_the_first_usage(
    database: Engine, raw_redis: redis.Redis, since: int, days_on: int
) -> None:
    """Terms that begin after the tenant did move the day on which periods begin."""
    with database.begin() as connection:
        books = Books(connection, raw_redis)
        set_terms(connection, books.tenant.tenant_id, Terms(day=15), since)
        books.tenant = replace(books.tenant, time_zone="America/New_York")
        books.use(OCTOBER + days_on * 24 * HOUR_MS)
        net = ZERO
        for _ in range(3):
            made = books.close(str(next_period(connection, books.tenant)))
            assert compute_again(connection, made.number) == made.document
            net += made.net
        assert net == books.owed() == Money.parse("2")


def test_capacity_and_a_commitment_are_owed_before_anything_is_used(books: Books) -> None:
    sign(books.connection, OURS, books.tenant.tenant_id)
    books.connection.execute(text("insert into contract_step values (:id, 0, 1000)"), {"id": OURS})
    assert next_period(books.connection, books.tenant) is None  # it has no price
    set_capacity_price(
        books.connection, contracts.find(books.connection, OURS), "2", 100, NOVEMBER, ISSUED_MS
    )
    books.use(DECEMBER)
    assert next_period(books.connection, books.tenant) == "2023-11"
    set_terms(books.connection, books.tenant.tenant_id, Terms(commitment=Money.parse("5")), 0)
    assert next_period(books.connection, books.tenant) == "2023-11"  # there was no tenant before
    books.tenant = replace(books.tenant, created_ms=OCTOBER)
    assert next_period(books.connection, books.tenant) == "2023-10"
    assert str(books.close("2023-10").net) == "5.00"
