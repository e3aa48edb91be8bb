"""The accounts of the ledger, and entries that are not of requests: credits, invoices, statements.

Debits are positive. An entry is recorded once for its kind and subject, so that doing a thing again changes
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.money import ZERO, Money
from billing.ledger.bulk_insert import insert_rows
from billing.schema.ledger import ledger_posting, ledger_transaction


class Account(StrEnum):
    """What an amount is; its holder is named in brackets."""

    # What a tenant owes (tenant).
    RECEIVABLE = "receivable"
    # Earned: by tokens (model), by reserved capacity (contract), by what was committed and not used (tenant).
    REVENUE = "revenue"
    CAPACITY = "capacity"
    COMMITMENT = "commitment"
    # Taken off: by volume (tenant), for capacity that was short (contract), by rounding to cents (tenant).
    DISCOUNT = "discount"
    SLA = "sla"
    ROUNDING = "rounding"
    # Prepaid credits that are left (tenant), what was paid or given for them (tenant), and what of them
    # expired (tenant).
    CREDITS = "credits"
    FUNDS = "funds"
    EXPIRED = "expired"
    # Owed to the tax office (tenant).
    TAX = "tax"
    # What was given back by credit notes (tenant).
    CORRECTION = "correction"
    # A maker's share of what its model earns (model), and what the maker is owed (maker/model).
    SHARE = "share"
    MAKER = "maker"
    # What providers charge (instance), and what they are owed (instance).
    COST = "cost"
    PROVIDER = "provider"
    # What absorbed tokens would have cost (reason), and that nobody pays it (model).
    ABSORBED = "absorbed"
    FORGONE = "forgone"


class EntryKind(StrEnum):
    """Of what an entry is; its subject in brackets."""

    # Credits that were granted, and those that expired (grant).
    GRANT = "grant"
    EXPIRY = "expiry"
    # What an invoice or a credit note adds to recorded usage (number).
    INVOICE = "invoice"
    # What is owed to makers and providers, and what was absorbed (month).
    BOOKS = "books"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a transaction; debits are positive."""

    account: str
    holder: str
    amount: Money


class UnbalancedError(AssertionError):
    """Postings that do not sum to zero: a bug, never written."""


def check_balanced(lines: Sequence[Posting]) -> None:
    """Raises `UnbalancedError` unless the lines sum to zero."""
    if total := sum([line.amount.picousd for line in lines]):
        raise UnbalancedError(f"postings sum to {Money(total)} USD")


def record_entry(connection: Connection, kind: EntryKind, subject: str, lines: Sequence[Posting]) -> bool:
    """Record an entry, without lines of zero. False if it is there already: then nothing is written."""
    check_balanced(lines)
    made = insert(ledger_transaction).values(kind=kind.value, subject=subject)
    made = made.on_conflict_do_nothing(index_elements=["kind", "subject"])
    transaction_id = connection.execute(
        made.returning(ledger_transaction.c.transaction_id)
    ).scalar_one_or_none()
    if transaction_id is None:
        return False
    rows = [
        posting_row(transaction_id, number, line) for number, line in enumerate(lines) if line.amount != ZERO
    ]
    if rows:
        insert_rows(connection, ledger_posting, rows)
    return True


def posting_row(transaction_id: int, number: int, line: Posting) -> dict[str, object]:
    """As `insert_rows` takes it."""
    return {
        "transaction_id": transaction_id,
        "line": number,
        "account": line.account,
        "holder": line.holder,
        "amount_picousd": str(line.amount.picousd),
    }


def held_by_entries(connection: Connection, *accounts: Account) -> dict[tuple[str, str], Money]:
    """What entries that are not of requests have put into these accounts, or into all: by account and holder.
    They are few, and are read by their kind.
    """
    of = ledger_posting.c
    query = (
        select(of.account, of.holder, func.sum(of.amount_picousd))
        .join(ledger_transaction, ledger_transaction.c.transaction_id == of.transaction_id)
        .where(ledger_transaction.c.kind.in_([each.value for each in EntryKind]))
        .group_by(of.account, of.holder)
    )
    if accounts:
        query = query.where(of.account.in_([each.value for each in accounts]))
    return {(row[0], row[1]): Money.from_sql(row[2]) for row in connection.execute(query)}


def account_balance(connection: Connection, account: str, holder: str) -> Money:
    """What an account holds; a tenant's `receivable` is what it owes."""
    query = select(func.coalesce(func.sum(ledger_posting.c.amount_picousd), 0)).where(
        ledger_posting.c.account == account, ledger_posting.c.holder == holder
    )
    return Money.from_sql(connection.execute(query).scalar_one())
