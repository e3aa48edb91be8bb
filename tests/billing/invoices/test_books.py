"""The books of a month: what makers and providers are owed, and what was absorbed, each once."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import OperationalError

from billing.catalogue import models, tenants
from billing.catalogue.models import ModelSpec
from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import COST, Scope, set_price
from billing.contracts import store as contracts
from billing.economics import owed
from billing.invoices import credit_notes, makers
from billing.invoices.books import balances, close_books, find
from billing.invoices.lines import Terms, Tier
from billing.invoices.paid_for_models import PaidFor
from billing.invoices.terms import set_capacity_price, set_terms
from billing.ledger.absorbed_event import AbsorbedEvent, absorb
from billing.ledger.accounts import Account, account_balance
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.maker_terms import MakerTerms
from billing.page import PageRequest
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.clock import database_now_ms
from billing.schema.ledger import ledger_posting
from billing.wire.ending import Ending, OtherReason
from billing.wire.tokens import CounterPair
from tests.billing.events import WEIGHTS, event
from tests.billing.invoices.test_close import (
    DECEMBER,
    HOUR_MS,
    ISSUED_MS,
    NOVEMBER,
    OCTOBER,
    SHORT_MINUTE,
    Books,
)
from tests.billing.ledger.test_price_scopes import OURS, START_MS, sign
from tests.billing.verified import KEY
from tests.fixtures.gateway import wait_until

PAID_FOR_MODELS = {Account.REVENUE, Account.DISCOUNT, Account.CAPACITY, Account.SLA}


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


def waits(database: Engine) -> bool:
    """Whether somebody waits for a lock."""
    with database.connect() as connection:
        return bool(connection.execute(text("select count(*) from pg_locks where not granted")).scalar())


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
    assert shares == {
        (tenant, "m1", "", PaidFor.TOKENS, 0): 493_600_000_000,
        (tenant, "m1", "", PaidFor.EACH_TOKEN, 1): 300_000_000_000,
    }
    assert check_ledger(books.connection) == []


def test_a_maker_gets_its_share_of_what_discounts_and_credit_notes_leave(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """6 USD of m1 and 4 of m2; 30 % off what is above 2 are 2.40, of which 1.44 are m1's. Of 4.56 a fifth is
    0.912. Half of the invoice is given back in November, and the other half in December.
    """
    with database.begin() as connection:
        books = Books(connection, raw_redis, tiers=(Tier(Money.parse("2"), 30),))
        for model in ("m1", "m2"):
            models.create(connection, ModelSpec(name=model, context_tokens=4096))
        set_price(connection, "m2", input="1", cached_input="1", output="2", valid_from_ms=0)
        makers.set_terms(connection, terms(0, 2000))
        for model, count in (("m1", 3), ("m2", 2)):
            for _ in range(count):
                books.use(OCTOBER, model=model)
        number = books.close("2023-10").number
        (october,) = close(books, "2023-10")
        assert (october["revenue"], october["amount"]) == ("4.56", "0.91")
        half = Money.parse("3.80")
        credit_notes.issue(connection, number, half, "x", issuer="us", key=KEY, now_ms=NOVEMBER)
        credit_notes.issue(connection, number, half, "x", issuer="us", key=KEY, now_ms=DECEMBER)
        (november,) = close(books, "2023-11")
        assert (november["revenue"], november["owed_so_far"], november["amount"]) == ("2.28", "0.46", "-0.45")
        (december,) = close(books, "2023-12")
        assert (december["revenue"], december["owed_so_far"]) == ("0.00", "0.00")
        assert account_balance(connection, Account.MAKER, "lab/m1") == ZERO


def test_all_that_is_paid_for_models_is_divided_among_them(database: Engine, raw_redis: redis.Redis) -> None:
    """Makers of all that is paid, who change within a period, of a tenant in a zone of half hours: reserved
    capacity of 2.00 USD whose tokens cost nothing, 0.10 given back for what was short, discounts, late usage.
    """
    with database.begin() as connection:
        books = Books(connection, raw_redis)
        books.tenant = tenants.create(connection, "globex", time_zone="Asia/Kolkata")
        tenant = books.tenant.tenant_id
        tiers = (Tier(Money.parse("1"), 10), Tier(Money.parse("3"), 33))
        set_terms(connection, tenant, Terms(tiers=tiers, commitment=Money.parse("50")), 0)
        for model in ("m1", "m2"):
            models.create(connection, ModelSpec(name=model, context_tokens=4096))
        set_price(connection, "m2", input="0.3", cached_input="1", output="1.7", valid_from_ms=0)
        sign(connection, OURS, tenant)
        connection.execute(SHORT_MINUTE, {"id": OURS, "minute": START_MS - START_MS % 60_000})
        step = text("insert into contract_step values (:id, :from_ms, 1000)")
        connection.execute(step, {"id": OURS, "from_ms": START_MS})
        contract = contracts.find(connection, OURS)
        set_capacity_price(connection, contract, "2", 500, 0, ISSUED_MS)
        free = {"input": "0", "cached_input": "0", "output": "0"}
        for model in ("m1", "m2"):
            scope = Scope(contract_id=OURS)
            set_price(connection, model, **free, valid_from_ms=0, scope=scope, now_ms=lambda: 0)
        within = {"class_": "reserved", "contract": OURS}
        for model, tokens in (("m1", (3000, 0, 0)), ("m2", (1000, 0, 0))):
            books.use(START_MS + 60_000, tokens, model=model, **within)
        # In hours that begin in the period before, and around the change of makers.
        for at_ms in (NOVEMBER - 5 * HOUR_MS - HOUR_MS // 3, START_MS - HOUR_MS, START_MS + HOUR_MS):
            books.use(at_ms, (1_000_003, 7, 500_001), model="m1")
            books.use(at_ms, (3_000_001, 0, 1), model="m2")
        change_ms = START_MS // HOUR_MS * HOUR_MS + HOUR_MS
        for model in ("m1", "m2"):
            for maker, from_ms in (("lab", 0), ("other", change_ms)):
                made = MakerTerms(model=model, maker=maker, from_ms=from_ms, share_basis_points=10_000)
                makers.set_terms(connection, made)
        invoices = [books.close("2023-11")]
        books.use(START_MS + 5, (777_777, 3, 1), model="m2")  # late
        books.use(DECEMBER, (2_000_000, 0, 0))
        invoices.append(books.close("2023-12"))
        found = makers.owed(connection, 0, ISSUED_MS)
        of_capacity = defaultdict(Fraction)
        for each in found:
            if each.contract:
                of_capacity[each.model, each.maker] += each.exact
        # 800 of 3,600 seconds are after the change, and what was short was before it.
        later = Fraction(2 * 800, 3600)
        assert of_capacity == {
            (model, maker): 10**12 * part * paid
            for model, part in (("m1", Fraction(3, 4)), ("m2", Fraction(1, 4)))
            for maker, paid in (("lab", 2 - later - Fraction(1, 10)), ("other", later))
        }
        earned = sum((each.amount for each in balances(connection) if each.account in PAID_FOR_MODELS), ZERO)
        assert sum(each.exact for each in found) == sum(each.paid for each in found) == -earned.picousd
        # What is given back whole leaves nothing to anybody, and in no month more than it should be.
        for each in invoices:
            credit_notes.issue(
                connection, each.number, each.net, "x", issuer="us", key=KEY, now_ms=ISSUED_MS - 1
            )
        left = defaultdict(Fraction)
        for each in makers.owed(connection, 0, ISSUED_MS):
            left[each.model, each.maker, each.contract] += each.exact
        assert set(left.values()) == {Fraction(0)}


def test_what_a_commitment_covers_is_given_back_with_the_commitment(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """October pays 10 USD for a request of 2. Its two late ones, of 2 and of 0.015 for another model, are on
    the invoice of November and covered; the request of November costs 2.
    """
    with database.begin() as connection:
        books = Books(connection, raw_redis, commitment=Money.parse("10"))
        set_terms(connection, books.tenant.tenant_id, Terms(), NOVEMBER)
        for model in ("m1", "m2"):
            models.create(connection, ModelSpec(name=model, context_tokens=4096))
            made = MakerTerms(model=model, maker="lab", from_ms=0, share_basis_points=10_000)
            makers.set_terms(connection, made)
        set_price(connection, "m2", input="1", cached_input="1", output="2", valid_from_ms=0)
        books.use(OCTOBER)
        first = books.close("2023-10").number

        def late() -> str:
            books.use(OCTOBER + 1)
            books.use(OCTOBER + 1, (0, 0, 7_500), model="m2")  # on the invoice 0.02
            books.use(NOVEMBER)
            return books.close("2023-11").number

        def give_back(number: str, usd: str) -> None:
            credit_notes.issue(
                connection, number, Money.parse(usd), "x", issuer="us", key=KEY, now_ms=ISSUED_MS - 1
            )

        def paid() -> tuple[Fraction, ...]:
            """For each model, in USD."""
            found: defaultdict[str, Fraction] = defaultdict(Fraction)
            for each in makers.owed(connection, 0, ISSUED_MS):
                found[each.model] += each.exact / 10**12
            return found["m1"], found["m2"]

        m2 = Fraction(15, 1000)
        before = connection.begin_nested()
        second = late()
        assert paid() == (6, m2)
        for number, usd, left in (
            (first, "5", (4, m2 / 2)),
            (first, "10", (2, 0)),
            (second, "1", (5, m2)),
            (second, "2", (4, m2)),
        ):
            alone = connection.begin_nested()
            give_back(number, usd)
            assert paid() == left
            alone.rollback()
        before.rollback()
        # It is the same if it was given back before.
        give_back(first, "5")
        late()
        assert paid() == (4, m2 / 2)
        give_back(first, "2.5")
        assert paid() == (3, m2 / 4)
        give_back(first, "2.5")
        assert paid() == (2, 0)


def test_models_get_no_more_than_is_paid_when_late_usage_comes_after_a_credit_note(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """October pays 10 for a request of 2, and 5 of it are given back. Then late usage draws on all that is
    left of the commitment, 5: with the 2 in time 7 of 10 are used.
    """
    with database.begin() as connection:
        books = Books(connection, raw_redis, commitment=Money.parse("10"))
        set_terms(connection, books.tenant.tenant_id, Terms(), NOVEMBER)
        models.create(connection, ModelSpec(name="m1", context_tokens=4096))
        made = MakerTerms(model="m1", maker="lab", from_ms=0, share_basis_points=10_000)
        makers.set_terms(connection, made)
        books.use(OCTOBER)
        first = books.close("2023-10").number
        credit_notes.issue(
            connection, first, Money.parse("5"), "x", issuer="us", key=KEY, now_ms=ISSUED_MS - 1
        )
        books.use(OCTOBER + 1, (0, 0, 2_500_000))
        assert books.close("2023-11").net == ZERO
        paid = sum(each.exact for each in makers.owed(connection, 0, ISSUED_MS))
        assert paid == Fraction(7, 2) * 10**12


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


def test_costs_are_posted_once_whenever_requests_and_prices_come(books: Books) -> None:
    """A million tokens of each kind: 3 USD by the first price, 30 by the one that came late."""
    after_prices_ms = database_now_ms(books.connection) + 2 * HOUR_MS
    provider = {"kind": "openai", "model": "x", "usage": {"prompt_tokens": 1_000_000}}

    def buy(ended_ms: int, model: str = "m1") -> None:
        request = event(
            f"far_{model}_{ended_ms}", (1_000_000, 0, 1_000_000), started_ms=ended_ms, ended_ms=ended_ms,
            tenant=books.tenant.tenant_id, model=model, instance="far",
        )  # fmt: skip
        bought = replace(request, provider=provider).to_json()
        record_events(books.connection, [ReceivedEvent.read(bought)])

    def costs() -> str:
        (held,) = [each for each in balances(books.connection) if each.account == Account.COST]
        return str(held.amount)

    set_price(books.connection, "m1", input="1", cached_input="1", output="2", valid_from_ms=0, of=COST)
    buy(OCTOBER)
    buy(NOVEMBER)
    buy(OCTOBER + 1, model="m2")
    close_books(books.connection, "2023-10", now_ms=after_prices_ms)
    assert costs() == "3.00"
    buy(OCTOBER + 2)
    buy(NOVEMBER + 2)
    close_books(books.connection, "2023-11", now_ms=after_prices_ms)
    assert costs() == "12.00"
    buy(DECEMBER)
    set_price(books.connection, "m2", input="10", cached_input="1", output="20", valid_from_ms=0, of=COST)
    close_books(books.connection, "2023-12", now_ms=after_prices_ms)
    assert costs() == "15.00"
    buy(DECEMBER + 1)
    books.connection.execute(text("set local session_replication_role = replica"))
    # Only what is new is read, unless a price has come since the last closing: so it was not seen above.
    moved = text("update cost_price set created_ms = :at where model = 'm2'")
    books.connection.execute(moved, {"at": after_prices_ms})
    close_books(books.connection, "2024-01", now_ms=after_prices_ms)
    assert costs() == "48.00"


def test_recording_goes_on_while_the_books_are_closed(database: Engine, raw_redis: redis.Redis) -> None:
    """A closing waits for who records as it begins, and counts that; what comes later is in the next."""
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0)

    def lose(connection: Connection, request_id: str) -> None:
        lost = event(request_id, (1, 0, 1), Ending.ENGINE_DIED, started_ms=OCTOBER, ended_ms=OCTOBER)
        connection.execute(text("set local lock_timeout = '5s'"))
        record_events(connection, [ReceivedEvent.read(lost.to_json())])

    def forgone() -> int:
        with database.connect() as connection:
            held = [each.amount for each in balances(connection) if each.account == Account.FORGONE]
        return -sum(each.picousd for each in held)

    with database.connect() as closing, database.connect() as recording, ThreadPoolExecutor(1) as threads:
        lose(recording, "before")
        closed = threads.submit(close_books, closing, "2023-10", now_ms=ISSUED_MS)
        wait_until(lambda: closed.done() or waits(database), "a closing that waits")
        assert not closed.done()
        recording.commit()
        closed.result()
        lose(recording, "meanwhile")
        recording.commit()
        closing.commit()
        assert forgone() == 2_000_000
        close_books(closing, "2023-11", now_ms=ISSUED_MS)
        closing.commit()
        assert forgone() == 4_000_000


def test_balances_are_read_without_the_postings_of_requests(books: Books) -> None:
    for number in range(20):
        books.use(OCTOBER + number)
    books.grant("5", OCTOBER)
    books.close("2023-10")
    close(books, "2023-10")
    sums = (
        select(ledger_posting.c.account, ledger_posting.c.holder, func.sum(ledger_posting.c.amount_picousd))
        .group_by(ledger_posting.c.account, ledger_posting.c.holder)
        .order_by(ledger_posting.c.account.collate("C"), ledger_posting.c.holder.collate("C"))
    )
    expected = [(row[0], row[1], int(row[2])) for row in books.connection.execute(sums)]
    read = text(
        "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'ledger_posting'"
    )
    # Whichever of its tables is small, PostgreSQL would read it whole. Statistics may be of an earlier test.
    books.connection.execute(text("analyze ledger_transaction, ledger_posting"))
    for way in ("seqscan", "hashjoin", "mergejoin"):
        books.connection.execute(text(f"set local enable_{way} = off"))
    before = books.connection.execute(read).scalar_one()
    found = balances(books.connection)
    assert books.connection.execute(read).scalar_one() - before < 20  # of 44
    assert [(each.account, each.holder, each.amount.picousd) for each in found] == expected


def test_terms_that_were_set_again_from_the_same_hour_are_listed_as_they_hold(books: Books) -> None:
    for each in (terms(OCTOBER, 1_000), terms(NOVEMBER, 2_000), terms(OCTOBER, 3_000)):
        makers.set_terms(books.connection, each)
    listed = [each for each, _ in makers.list_page(books.connection, PageRequest(10)).rows]
    assert listed == [terms(OCTOBER, 3_000), terms(NOVEMBER, 2_000)]


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

    with database.connect() as closing, ThreadPoolExecutor(1) as threads:
        close_books(closing, "2023-10", now_ms=ISSUED_MS)
        setting = threads.submit(set_them)
        wait_until(lambda: setting.done() or waits(database), "terms that wait")
        closing.commit()
        with pytest.raises(Conflict):
            setting.result()


def test_books_are_not_closed_while_tokens_are_being_absorbed(database: Engine) -> None:
    """Else those of the last moment of a month could be in the books of no month."""
    with database.connect() as absorbing, database.connect() as closing:
        absorb(absorbing, AbsorbedEvent(
            request_id="rec_1", model="m1", pool="m1", cell="m1", instance="i1", epoch="e1",
            tokens=CounterPair(3, 4), reason=OtherReason.CALIBRATION, ending=Ending.COMPLETE,
            weights={"version": WEIGHTS.version}, started_ms=1,
        ))  # fmt: skip
        closing.exec_driver_sql("set lock_timeout = 50")
        with pytest.raises(OperationalError, match="lock timeout"):
            close_books(closing, "2023-10", now_ms=ISSUED_MS)
        closing.rollback()
        absorbing.commit()
        assert close_books(closing, "2023-10", now_ms=ISSUED_MS).ledger_upto == 1
