"""Usage that comes late and commitments: nothing is paid twice, and a period of some days has its part."""

import json
from dataclasses import replace

import pytest
import redis
from sqlalchemy import Engine

from billing.catalogue.money import Money
from billing.invoices import credit_notes
from billing.invoices.check import check_invoices
from billing.invoices.close import compute_again
from billing.invoices.lines import Terms
from billing.invoices.periods import period
from billing.invoices.terms import set_terms
from billing.ledger.accounts import Account, account_balance
from billing.ledger.check import check_ledger
from tests.billing.invoices.test_close import HOUR_MS, ISSUED_MS, NOVEMBER, OCTOBER, Books, lines
from tests.billing.verified import KEY


def test_late_usage_draws_on_what_its_period_has_paid_unused(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """A request is 2 USD. Of 5 in October 2 are used in time, so 3 are charged unused: the next request of
    October is paid by them, of the one after it 1. November pays its own 5 for its own request.
    """
    with database.begin() as connection:
        books = Books(connection, raw_redis, commitment=Money.parse("5"))
        books.use(OCTOBER)
        assert str(books.close("2023-10").net) == "5.00"
        books.use(OCTOBER + 1)
        books.use(NOVEMBER)
        november = books.close("2023-11")
        assert lines(november)[4:] == [
            ("covered", "2023-10", None, "-2.00"), ("commitment", None, None, "3.00"),
        ]  # fmt: skip
        assert str(november.net) == "5.00"
        books.use(OCTOBER + 2)
        books.use(NOVEMBER + 1)
        books.use(NOVEMBER + 2)
        december = books.close("2023-12")
        assert lines(december)[4:] == [
            ("covered", "2023-10", None, "-1.00"), ("covered", "2023-11", None, "-3.00"),
            ("commitment", None, None, "5.00"),
        ]  # fmt: skip
        # Three of each month, and nothing of December: 6 + 6 + 5, as if nothing had been late.
        assert books.owed() == Money.parse("17")
        assert account_balance(connection, Account.COMMITMENT, books.tenant.tenant_id) == Money.parse("-5")
        for made in (november, december):
            assert compute_again(connection, made.number) == made.document
        assert (check_invoices(connection), check_ledger(connection)) == ([], [])
        books.assert_verified()


@pytest.mark.parametrize(("note_usd", "drawn"), [("2.00", "-2.00"), ("4.00", "-1.00"), ("5.00", None)])
def test_what_a_credit_note_gave_back_of_a_commitment_is_not_drawn_on(
    database: Engine, raw_redis: redis.Redis, note_usd: str, drawn: str | None
) -> None:
    """Of an invoice of 5, 3 of them unused: a credit note gives back the unused part last."""
    with database.begin() as connection:
        books = Books(connection, raw_redis, commitment=Money.parse("5"))
        books.use(OCTOBER)
        first = books.close("2023-10")
        credit_notes.issue(
            connection, first.number, Money.parse(note_usd), "x", issuer="us", key=KEY, now_ms=ISSUED_MS
        )
        books.use(OCTOBER + 1)
        second = books.close("2023-11")
        assert [each[3] for each in lines(second) if each[0] == "covered"] == ([drawn] if drawn else [])
        # A note of later changes nothing of it.
        credit_notes.issue(
            connection, second.number, Money.parse("0.01"), "x", issuer="us", key=KEY, now_ms=ISSUED_MS
        )
        assert check_invoices(connection) == []


@pytest.mark.parametrize(
    "steps",
    [
        [("note", "8"), ("late", "2", "-2.00"), ("late", "2", None)],
        [("note", "5"), ("late", "5", "-5.00"), ("late", "3", None)],
        [("late", "5", "-5.00"), ("note", "5"), ("late", "4", "-3.00"), ("late", "1", None)],
        [("note", "4"), ("late", "3", "-3.00"), ("note", "4"), ("late", "3", "-2.00"), ("late", "1", None)],
    ],
)
def test_late_usage_of_several_invoices_draws_no_more_than_is_left(
    database: Engine, raw_redis: redis.Redis, steps: list[tuple[str, ...]]
) -> None:
    """Of an invoice of 10, 8 of them unused. What is drawn is paid for like what was used in time: credit
    notes give it back first.
    """
    months = iter(("2023-11", "2023-12", "2024-01"))
    with database.begin() as connection:
        books = Books(connection, raw_redis, commitment=Money.parse("10"))
        books.use(OCTOBER)
        first = books.close("2023-10")
        for at, step in enumerate(steps, 1):
            if step[0] == "note":
                amount = Money.parse(step[1])
                credit_notes.issue(
                    connection, first.number, amount, "x", issuer="us", key=KEY, now_ms=ISSUED_MS
                )
                continue
            _, usd, covered = step
            books.use(OCTOBER + at, (0, 0, int(usd) * 500_000))
            made = books.close(next(months))
            assert [each[3] for each in lines(made) if each[0] == "covered"] == ([covered] if covered else [])
        assert check_invoices(connection) == []
        books.assert_verified()


@pytest.mark.parametrize(
    ("days", "committed"),
    [((15, 1), "54.84"), ((1, 15), "146.67"), ((15, 15), "100.00")],
    ids=["shorter", "longer", "a month"],
)
def test_a_period_that_another_day_makes_shorter_or_longer_has_its_part_of_the_commitment(
    database: Engine, raw_redis: redis.Redis, days: tuple[int, int], committed: str
) -> None:
    """From the 15th of October to the 1st of November are 17 of 31 days; from the 1st of November to the 15th
    of December are 44 of 30.
    """
    before, after = days
    with database.begin() as connection:
        books = Books(connection, raw_redis, day=before)
        first_ms, next_ms = period("2023-10" if before == 1 else "2023-09", before, "America/New_York")
        books.tenant = replace(books.tenant, time_zone="America/New_York")
        books.use(first_ms)
        first = books.close("2023-10" if before == 1 else "2023-09")
        assert first.until_ms == next_ms
        terms = Terms(day=after, commitment=Money.parse("100"))
        set_terms(connection, books.tenant.tenant_id, terms, next_ms)
        second = books.close("2023-11" if before == 1 else "2023-10")
        document = json.loads(second.document)
        assert str(second.net) == document["terms"]["commitment"] == committed
        assert compute_again(connection, second.number) == second.document
        books.assert_verified()


def test_usage_from_before_the_first_period_is_no_late_usage_of_it(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """The first period begins on the 15th of October; what was used on the 2nd is not paid by its
    commitment.
    """
    with database.begin() as connection:
        books = Books(connection, raw_redis, day=15, commitment=Money.parse("5"))
        books.use(OCTOBER + 20 * 24 * HOUR_MS)
        books.close("2023-10")
        books.use(OCTOBER + 24 * HOUR_MS)
        assert [each[:2] for each in lines(books.close("2023-11"))] == [
            ("usage", "2023-09"), ("usage", "2023-09"), ("commitment", None),
        ]  # fmt: skip
        books.assert_verified()


def test_what_is_late_after_an_invoice_of_an_empty_ledger_is_verified(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """It counted no transaction, so each one after it is later."""
    with database.begin() as connection:
        books = Books(connection, raw_redis, commitment=Money.parse("5"))
        assert books.close("2023-10").ledger_upto == 0
        books.use(OCTOBER)
        assert str(books.close("2023-11").net) == "5.00"
        books.assert_verified()
