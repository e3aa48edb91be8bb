"""Closing periods: what an invoice counts, that it never changes, and what comes after it."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, func, select, text

from billing.catalogue import tenants
from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import set_price
from billing.catalogue.tenants import Tenant
from billing.contracts import store as contracts
from billing.invoices import credit_notes, credits, store
from billing.invoices.check import check_invoices
from billing.invoices.close import (
    close,
    compute_again,
    make_draft,
    refuse_early,
)
from billing.invoices.lines import Terms, Tier
from billing.invoices.next_period import next_period
from billing.invoices.periods import period
from billing.invoices.store import Stored
from billing.invoices.terms import set_capacity_price, set_terms
from billing.ledger.accounts import Account, account_balance
from billing.ledger.backfill import Scope, backfill
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, record_events
from billing.refusals import Conflict, Invalid
from billing.schema.ledger import ledger_posting
from billing.wire import redis_clock, redis_keys
from tests.billing.events import event
from tests.billing.ledger.test_price_scopes import OURS, sign
from tests.billing.verified import KEY, assert_verified
from tests.examples import examples

OCTOBER, NOVEMBER, DECEMBER = (period(f"2023-{month}", 1, "UTC")[0] for month in (10, 11, 12))
ISSUED_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
# A contract was short of 36 unit-seconds.
SHORT_MINUTE = text("""
    insert into contract_minute (contract_id, minute_ms, assigned_mu, used_mu, lent_mu, borrowed_mu,
      refused, cut_mu, missing_mu) values (:id, :minute, 60000, 0, 0, 0, 0, 30000, 6000)
""")


class Books:
    """A database with one tenant, and what is done to its invoices."""

    def __init__(self, connection: Connection, client: redis.Redis, **terms: Any) -> None:
        self.connection = connection
        self.client = client
        self.tenant: Tenant = tenants.create(connection, "acme")
        self.numbers = 0
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        if terms:
            set_terms(connection, self.tenant.tenant_id, Terms(**terms), 0)

    def use(self, ended_ms: int, tokens: tuple[int, ...] = (1_000_000, 0, 500_000), **changes: Any) -> None:
        record_events(self.connection, [self.request(ended_ms, tokens, **changes)])

    def request(self, ended_ms: int, tokens: tuple[int, ...], **changes: Any) -> ReceivedEvent:
        self.numbers += 1
        made = event(
            f"req_{self.numbers}", tokens, started_ms=ended_ms - 10, ended_ms=ended_ms,
            tenant=self.tenant.tenant_id, **changes,
        )  # fmt: skip
        return ReceivedEvent.read(made.to_json())

    def close(self, name: str, key: Ed25519PrivateKey = KEY) -> Stored:
        return close(self.connection, self.client, self.tenant, name, issuer="us", key=key, now_ms=ISSUED_MS)

    def assert_verified(self) -> None:
        assert_verified(self.connection, self.tenant)

    def owed(self) -> Money:
        return account_balance(self.connection, Account.RECEIVABLE, self.tenant.tenant_id)

    def grant(self, usd: str, at_ms: int, expires_ms: int | None = None) -> str:
        return credits.grant(
            self.connection, self.tenant.tenant_id, Money.parse(usd), at_ms, expires_ms=expires_ms
        ).credit


@pytest.fixture
def books(database: Engine, raw_redis: redis.Redis) -> Iterator[Books]:
    with database.begin() as connection:
        yield Books(connection, raw_redis)


def lines(made: Stored) -> list[tuple[Any, ...]]:
    document = json.loads(made.document)
    return [
        (each["type"], each.get("period"), each.get("kind"), each["amount"]) for each in document["lines"]
    ]


def test_an_invoice_has_what_ended_in_its_period(books: Books) -> None:
    books.use(OCTOBER - 1)
    books.use(OCTOBER)
    books.use(NOVEMBER - 1, (0, 0, 1), class_="flex")
    books.use(NOVEMBER)
    books.close("2023-09")
    made = books.close("2023-10")
    assert lines(made) == [
        ("usage", "2023-10", "output", "0.00"),
        ("usage", "2023-10", "uncached_input", "1.00"),
        ("usage", "2023-10", "output", "1.00"),
    ]
    document = json.loads(made.document)
    assert (made.number, document["net"], document["due"]) == ("INV-000002", "2.00", "2.00")
    assert document["lines"][0]["exact"] == "0.000002"
    assert (document["period"]["from"], document["period"]["until"]) == (
        "2023-10-01T00:00:00Z",
        "2023-11-01T00:00:00Z",
    )
    assert compute_again(books.connection, made.number) == made.document
    # Invoiced to the cent, and not yet invoiced to the pico-dollar.
    assert books.owed() == Money.parse("6.00")
    assert check_ledger(books.connection) == []


def test_periods_are_closed_in_their_order_and_once(books: Books) -> None:
    assert next_period(books.connection, books.tenant) is None
    books.use(OCTOBER + 5)
    assert next_period(books.connection, books.tenant) == "2023-10"
    with pytest.raises(Conflict, match="2023-10"):
        books.close("2023-11")
    books.close("2023-09")  # nothing was used in it
    books.close("2023-10")
    for name in ("2023-10", "2023-12"):
        with pytest.raises(Conflict, match="2023-11"):
            books.close(name)
    with pytest.raises(Invalid):
        books.close("October")
    assert lines(books.close("2023-11")) == []


def test_a_period_is_closed_when_it_is_over_and_its_usage_recorded(books: Books) -> None:
    books.use(OCTOBER)
    books.client.sadd(redis_keys.CELLS, "m1")
    books.client.xadd(redis_keys.usage_stream("m1"), {"e": "x"}, id=f"{NOVEMBER - 1}-0")
    with pytest.raises(Conflict, match="recorded") as waits:
        books.close("2023-10")
    assert waits.value.code == "usage_not_recorded"
    books.client.delete(redis_keys.usage_stream("m1"))
    books.client.xadd(redis_keys.usage_stream("m1"), {"e": "x"}, id=f"{NOVEMBER}-0")
    books.close("2023-10")
    year, month = datetime.now(UTC).year, datetime.now(UTC).month
    with pytest.raises(Conflict) as lasts:
        refuse_early(books.client, period(f"{year}-{month:02d}", 1, "UTC")[1], reserved=False)
    assert lasts.value.code == "period_not_over"
    # What contracts were short of at its end is counted in the minutes after it.
    books.client.delete(redis_keys.usage_stream("m1"))
    now_ms = redis_clock.now_ms(books.client)
    refuse_early(books.client, now_ms, reserved=False)
    with pytest.raises(Conflict) as counting:
        refuse_early(books.client, now_ms, reserved=True)
    assert counting.value.code == "shortfall_not_counted"
    refuse_early(books.client, now_ms - 300_000, reserved=True)


def test_fault_47_late_usage_is_on_the_next_invoice_under_its_own_period(books: Books) -> None:
    books.use(OCTOBER)
    first = books.close("2023-10")
    books.use(OCTOBER + 5)
    books.use(NOVEMBER + 5)
    books.use(OCTOBER - 5)  # of before its first invoice
    second = books.close("2023-11")
    assert lines(second) == [
        ("usage", "2023-09", "uncached_input", "1.00"),
        ("usage", "2023-09", "output", "1.00"),
        ("usage", "2023-10", "uncached_input", "1.00"),
        ("usage", "2023-10", "output", "1.00"),
        ("usage", "2023-11", "uncached_input", "1.00"),
        ("usage", "2023-11", "output", "1.00"),
    ]
    books.use(OCTOBER + 6)
    for made in (first, second):
        assert compute_again(books.connection, made.number) == made.document
    assert [each[1] for each in lines(books.close("2023-12"))] == ["2023-10", "2023-10"]
    books.assert_verified()


def test_fault_47_a_price_that_is_set_later_puts_its_requests_on_the_next_invoice(books: Books) -> None:
    books.use(OCTOBER, model="m2")
    first = books.close("2023-10")
    assert json.loads(first.document)["not_billed"] == {"unpriced": 1, "quarantined": 0}
    set_price(books.connection, "m2", input="3", cached_input="3", output="3", valid_from_ms=0)
    backfill(books.connection, Scope("m2", 0, 10**15), dry_run=False)
    assert compute_again(books.connection, first.number) == first.document
    assert [each[1:] for each in lines(books.close("2023-11"))] == [
        ("2023-10", "uncached_input", "3.00"), ("2023-10", "output", "1.50"),
    ]  # fmt: skip


def test_fault_30_usage_in_doubt_is_on_no_invoice_and_counted(books: Books) -> None:
    books.use(OCTOBER, anomaly="usage_above_max_tokens")
    books.use(OCTOBER + 1)
    made = books.close("2023-10")
    document = json.loads(made.document)
    assert (document["net"], document["not_billed"]) == ("2.00", {"unpriced": 0, "quarantined": 1})
    assert compute_again(books.connection, made.number) == made.document


def test_capacity_is_charged_used_or_not_and_what_was_short_is_given_back(books: Books) -> None:
    """Contract: one unit a second from a moment in November for an hour, at 2 USD."""
    begins = 1_700_000_000_000
    sign(books.connection, OURS, "ten_a")
    books.connection.execute(
        text("insert into contract_step values (:id, :from_ms, 1000)"), {"id": OURS, "from_ms": begins}
    )
    minute = begins - begins % 60_000  # it begins within it
    books.connection.execute(SHORT_MINUTE, {"id": OURS, "minute": minute})
    contract = contracts.find(books.connection, OURS)
    set_capacity_price(books.connection, contract, "2", 500, 0, ISSUED_MS)
    books.tenant = tenants.find(books.connection, "ten_a")
    made = books.close("2023-11")
    # 36 unit-seconds short are 0.01 unit-hours: 2 cents, five times over.
    assert [(each[0], each[3]) for each in lines(made)] == [("capacity", "2.00"), ("sla_credit", "-0.10")]
    assert compute_again(books.connection, made.number) == made.document
    assert books.owed() == Money.parse("1.90")
    assert account_balance(books.connection, Account.CAPACITY, OURS) == Money.parse("-2")
    books.assert_verified()


def test_the_oldest_credit_pays_first_and_one_that_expires_for_what_was_used_before(books: Books) -> None:
    books.use(OCTOBER + 5)  # 2 USD
    books.use(OCTOBER + 3 * HOUR_MS)  # 2 USD
    expiring = books.grant("3", OCTOBER, OCTOBER + HOUR_MS)
    lasting = books.grant("1.50", OCTOBER + 1)
    books.grant("9", NOVEMBER)  # of the next period
    made = books.close("2023-10")
    document = json.loads(made.document)
    assert document["credits"] == [
        {"credit": expiring, "amount": "2.00"}, {"credit": lasting, "amount": "1.50"},
    ]  # fmt: skip
    assert (document["total"], document["due"]) == ("4.00", "0.50")
    assert compute_again(books.connection, made.number) == made.document
    tenant = books.tenant.tenant_id
    assert books.owed() == Money.parse("0.50")
    # 13.50 were granted, 3.50 used, and 1 expired.
    assert account_balance(books.connection, Account.CREDITS, tenant) == Money.parse("-9")
    assert account_balance(books.connection, Account.EXPIRED, tenant) == Money.parse("-1")
    books.assert_verified()


def test_terms_hold_from_the_period_after_them(database: Engine, raw_redis: redis.Redis) -> None:
    with database.begin() as connection:
        books = Books(connection, raw_redis, day=15, tax_name="VAT", tax_basis_points=1900)
        middle = OCTOBER + 14 * 24 * HOUR_MS
        books.use(middle - 1)
        books.use(middle)
        first = books.close("2023-09")
        assert (first.until_ms, str(first.total)) == (middle, "2.38")
        with pytest.raises(Conflict):
            set_terms(connection, books.tenant.tenant_id, Terms(), middle - 1)
        set_terms(connection, books.tenant.tenant_id, Terms(tiers=(Tier(Money.parse("1"), 50),)), middle)
        second = books.close("2023-10")
        # Without a gap: from the middle of October to the first of November. That is 17 of 31 days, so half
        # is taken off what is above 0.55.
        assert (second.from_ms, second.until_ms, str(second.total)) == (middle, NOVEMBER, "1.28")
        assert json.loads(second.document)["terms"]["prorated"] == {"days": 17, "of_days": 31}
        for made in (first, second):
            assert compute_again(connection, made.number) == made.document
        books.assert_verified()


def test_a_price_of_capacity_of_an_invoiced_time_is_refused(books: Books) -> None:
    """What was not on its invoice would be on none."""
    sign(books.connection, OURS, books.tenant.tenant_id)
    contract = contracts.find(books.connection, OURS)
    books.close("2023-11")
    with pytest.raises(Conflict) as refused:
        set_capacity_price(books.connection, contract, "2", 100, DECEMBER - 1, ISSUED_MS)
    assert refused.value.code == "already_invoiced"
    set_capacity_price(books.connection, contract, "2", 100, DECEMBER, ISSUED_MS)


def test_numbers_have_no_gaps_when_a_close_fails(database: Engine, raw_redis: redis.Redis) -> None:
    with database.begin() as connection:
        books = Books(connection, raw_redis)
        books.use(OCTOBER)
    for _ in range(2):
        with database.connect() as connection, connection.begin() as whole:
            books.connection = connection
            books.close("2023-10")
            whole.rollback()
    with database.begin() as connection:
        books.connection = connection
        assert books.close("2023-10").number == "INV-000001"


def test_a_document_is_signed(books: Books) -> None:
    key = Ed25519PrivateKey.generate()
    made = books.close("2023-10", key)
    key.public_key().verify(base64.b64decode(str(made.signature)), b"taas invoice 1\n" + made.sha256.encode())


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("use"),
            st.integers(0, 100),
            st.tuples(st.integers(0, 9999), st.just(0), st.integers(1, 99999)),
        ),
        st.tuples(st.just("close"), st.none(), st.none()),
        st.tuples(st.just("note"), st.none(), st.none()),
        st.tuples(st.just("grant"), st.integers(0, 100), st.integers(1, 10**6)),
        st.tuples(st.just("unpriced"), st.integers(0, 100), st.none()),
        st.tuples(st.just("price"), st.none(), st.none()),
    ),
    max_size=14,
)


@settings(
    max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(steps=STEPS)
def test_whatever_happens_invoices_stay_and_the_ledger_is_their_sum(
    database: Engine, raw_redis: redis.Redis, steps: Any
) -> None:
    """Moments are days from October on. What is owed are the dues of all documents and what is on none."""
    with database.connect() as connection, connection.begin() as whole:
        books = Books(connection, raw_redis, tax_basis_points=700)
        books.use(OCTOBER)
        made: list[Stored] = []
        for what, day, amount in steps:
            moment_ms = OCTOBER + (day or 0) * 24 * HOUR_MS
            if what == "use":
                books.use(moment_ms, amount)
            elif what == "unpriced":
                books.use(moment_ms, model="m2")
            elif what == "price":
                set_price(connection, "m2", input="1", cached_input="1", output="1")
            elif what == "grant":
                books.grant(str(Money(amount * 10**10)), moment_ms)
            elif what == "close":
                made.append(books.close(str(next_period(connection, books.tenant))))
            elif made and made[-1].kind == "invoice" and made[-1].net > ZERO:
                cent = Money(10**10)
                made.append(
                    credit_notes.issue(
                        connection, made[-1].number, cent, "x", issuer="us", key=KEY, now_ms=ISSUED_MS
                    )
                )
        for each in made:
            assert store.find(connection, each.number) == each
            if each.kind == "invoice":
                assert compute_again(connection, each.number) == each.document
        open_ = make_draft(
            connection,
            books.tenant,
            str(next_period(connection, books.tenant)),
            issuer="us",
            now_ms=ISSUED_MS,
        )
        dues = sum((each.due for each in made), ZERO)
        exact_open = connection.execute(
            text("""
                select coalesce(sum(p.amount_picousd), 0) from ledger_posting p
                join ledger_transaction t using (transaction_id) join usage_event e using (request_id)
                where p.account = 'receivable' and (e.ended_ms >= :until or exists (
                  select from late_transaction l where l.transaction_id = t.transaction_id and
                  l.transaction_id > :upto))
            """),
            {
                "until": open_.facts.from_ms if made else 0,
                "upto": max((each.ledger_upto for each in made), default=0),
            },
        ).scalar_one()
        assert books.owed() == dues + Money(int(exact_open))
        assert connection.execute(select(func.sum(ledger_posting.c.amount_picousd))).scalar_one() in {0, None}
        assert check_ledger(connection) == []
        books.assert_verified()
        whole.rollback()


@pytest.fixture
def issued(books: Books) -> Books:
    """An invoice with a credit, its credit note, in a transaction in which no trigger holds."""
    books.grant("1", OCTOBER)
    books.use(OCTOBER)
    number = books.close("2023-10").number
    credit_notes.issue(
        books.connection, number, Money.parse("0.10"), "x", issuer="us", key=KEY, now_ms=ISSUED_MS
    )
    assert check_invoices(books.connection) == []
    books.connection.execute(text("set constraints all immediate"))
    books.connection.execute(text("set session_replication_role = replica"))
    return books


INVOICE, NOTE = "INV-000001", "CN-000001"
LOWER = """
update invoice set document = replace(convert_from(document, 'UTF8'), '"2.00"', '"1.00"')::bytea
where kind = 'invoice'
"""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (LOWER, INVOICE),
        ("update invoice set total_picousd = total_picousd - 1 where kind = 'invoice'", INVOICE),
        ("update invoice set due_picousd = 0 where kind = 'credit_note'", NOTE),
        ("update invoice set ledger_upto = 0 where kind = 'invoice'", INVOICE),
        ("update usage_event set billed_output = billed_output + 1", INVOICE),
        ("update price set output_picousd = output_picousd + 1", INVOICE),
        ("update ledger_posting set amount_picousd = 1 where account = 'credits'", INVOICE),
        ("update ledger_posting set amount_picousd = 1 where account = 'correction'", NOTE),
        ("update credit_grant set amount_picousd = 7", "crd_"),
        ("delete from invoice where kind = 'credit_note'", NOTE),
    ],
)
def test_whatever_is_changed_of_an_invoice_is_named(issued: Books, change: str, named: str) -> None:
    issued.connection.execute(text("alter table usage_event drop constraint ck_usage_event_output_conserved"))
    issued.connection.execute(text(change))
    (finding,) = check_invoices(issued.connection)
    assert any(each.startswith(named) for each in finding.ids), finding.message
    issued.connection.execute(text("set session_replication_role = origin"))
