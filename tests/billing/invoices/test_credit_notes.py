"""Credit notes: what of an invoice they give back, with its tax, and as what."""

import json

import pytest
import redis
from sqlalchemy import Engine

from billing.catalogue.money import ZERO, Money
from billing.invoices import credit_notes, credits
from billing.invoices.check import check_invoices
from billing.invoices.close import compute_again
from billing.ledger.accounts import Account, account_balance
from billing.refusals import Conflict, Invalid
from tests.billing.invoices.test_close import HOUR_MS, ISSUED_MS, NOVEMBER, OCTOBER, Books
from tests.billing.verified import KEY


@pytest.mark.parametrize("note_usd", ["0.08", "0.10", "2.00"])
def test_credit_notes_give_back_all_the_tax_and_no_more(
    database: Engine, raw_redis: redis.Redis, note_usd: str
) -> None:
    with database.begin() as connection:
        books = Books(connection, raw_redis, tax_basis_points=700)
        books.use(OCTOBER)
        made = books.close("2023-10")
        amount, left = Money.parse(note_usd), made.net
        while left > ZERO:
            part = min(amount, left)
            credit_notes.issue(connection, made.number, part, "x", issuer="us", key=KEY, now_ms=ISSUED_MS)
            left -= part
        assert books.owed() == ZERO
        assert account_balance(connection, Account.TAX, books.tenant.tenant_id) == ZERO
        assert check_invoices(connection) == []
        books.assert_verified()


def test_a_credit_note_gives_back_no_more_than_there_is(database: Engine, raw_redis: redis.Redis) -> None:
    with database.begin() as connection:
        books = Books(connection, raw_redis, tax_basis_points=1000)
        books.use(OCTOBER)
        made = books.close("2023-10")
        note = credit_notes.issue(
            connection, made.number, Money.parse("0.50"), "an outage", issuer="us", key=KEY, now_ms=ISSUED_MS
        )
        assert (note.number, str(note.total)) == ("CN-000001", "-0.55")
        for wrong in ("1.51", "0.001", "0.00", "-1.00"):
            with pytest.raises((Conflict, Invalid)):
                credit_notes.issue(
                    connection, made.number, Money.parse(wrong), "x", issuer="us", key=KEY, now_ms=ISSUED_MS
                )
        with pytest.raises(Invalid):
            credit_notes.issue(
                connection, note.number, Money.parse("0.10"), "x", issuer="us", key=KEY, now_ms=ISSUED_MS
            )
        assert compute_again(connection, made.number) == made.document
        assert books.owed() == Money.parse("1.65")


def test_a_credit_note_gives_back_what_is_due_and_then_what_credits_have_paid(
    database: Engine, raw_redis: redis.Redis
) -> None:
    """2.20 USD, of which 1.50 is paid by a credit that has expired since: 0.70 was due."""
    with database.begin() as connection:
        books = Books(connection, raw_redis, tax_basis_points=1000)
        books.use(OCTOBER)
        books.grant("1.50", OCTOBER, OCTOBER + HOUR_MS)
        made = books.close("2023-10")
        tenant, given = books.tenant.tenant_id, []
        for usd in ("0.50", "0.50", "1.00"):
            given.append(
                credit_notes.issue(
                    connection, made.number, Money.parse(usd), "x", issuer="us", key=KEY, now_ms=ISSUED_MS
                )
            )
        # 0.55 each, and 1.10; the second is more than is left of what was due.
        assert [str(note.due) for note in given] == ["-0.55", "-0.15", "0.00"]
        back = {each.credit: each for each in credits.of_tenant(connection, tenant) if each.rest > ZERO}
        listed = [each for note in given for each in json.loads(note.document)["credits"]]
        assert {each["credit"]: each["amount"] for each in listed} == {
            credit: f"-{each.amount}" for credit, each in back.items()
        }
        assert {each.note: str(each.amount) for each in back.values()} == {
            "given back by CN-000002": "0.40", "given back by CN-000003": "1.10",
        }  # fmt: skip
        assert books.owed() == ZERO
        assert account_balance(connection, Account.FUNDS, tenant) == Money.parse("1.50")
        assert check_invoices(connection) == []
        # The next invoice uses it.
        books.use(NOVEMBER)
        assert str(books.close("2023-11").due) == "0.70"
        books.assert_verified()
