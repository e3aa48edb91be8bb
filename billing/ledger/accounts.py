"""The accounts of the ledger, and the lines of its transactions. Debits are positive."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, func, select

from billing.catalogue.money import ZERO, Money
from billing.schema.ledger import ledger_posting


class Account(StrEnum):
    """What an amount is; its holder is named in brackets."""

    # What a tenant owes (tenant).
    RECEIVABLE = "receivable"
    # Earned by tokens (model).
    REVENUE = "revenue"


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
    total = sum((line.amount for line in lines), ZERO)
    if total != ZERO:
        raise UnbalancedError(f"postings sum to {total} USD")


def posting_row(transaction_id: int, number: int, line: Posting) -> dict[str, object]:
    """As `insert_rows` takes it."""
    return {
        "transaction_id": transaction_id,
        "line": number,
        "account": line.account,
        "holder": line.holder,
        "amount_picousd": str(line.amount.picousd),
    }


def account_balance(connection: Connection, account: str, holder: str) -> Money:
    """What an account holds; a tenant's `receivable` is what it owes."""
    query = select(func.coalesce(func.sum(ledger_posting.c.amount_picousd), 0)).where(
        ledger_posting.c.account == account, ledger_posting.c.holder == holder
    )
    return Money.from_sql(connection.execute(query).scalar_one())
