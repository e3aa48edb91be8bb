"""Checks invoices: each document is what was issued and what the ledger gives again, its entry in the ledger
is what it says, and no number is missing. It corrects nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

import orjson
from sqlalchemy import Connection, select

from billing.findings import Finding, FindingKind
from billing.invoices import store
from billing.invoices.close import draft_again, is_countable, postings_of
from billing.invoices.credit_notes import postings_of_note
from billing.invoices.document import sha256
from billing.invoices.store import Stored
from billing.ledger.accounts import EntryKind, Posting
from billing.schema.invoices import credit_grant, document_series
from billing.schema.ledger import ledger_posting, ledger_transaction

_NAMED_MAX: Final = 20


def check_invoices(connection: Connection) -> list[Finding]:
    """Reads every document, and the ledger behind it: for an audit that somebody asked for."""
    every = store.every(connection)
    wrong = [
        *(f"{each.number}: {what}" for each in every for what in _wrong(connection, each)),
        *_missing(connection, {each.number for each in every}),
        *_credits(connection),
    ]
    if not wrong:
        return []
    message = "invoices, credit notes and credits that are not what was issued: " + "; ".join(
        wrong[:_NAMED_MAX]
    )
    ids = [each.partition(":")[0] for each in wrong[:_NAMED_MAX]]
    return [Finding(kind=FindingKind.INVOICE_DIFFERS, message=message, count=len(wrong), ids=ids)]


def _wrong(connection: Connection, each: Stored) -> Iterator[str]:
    if sha256(each.document) != each.sha256:
        yield "the document is not the one that was signed"
    said = orjson.loads(each.document)
    if (said["net"], said["total"], said["due"]) != (str(each.net), str(each.total), str(each.due)):
        yield "its sums are not those of its document"
    if each.kind == "credit_note":
        expected = postings_of_note(each)
    elif not is_countable(connection, each):
        # Its entry is in a chain, too.
        return
    else:
        draft = draft_again(connection, each)
        if draft.document(each.number) != each.document:
            yield "the ledger does not give the same document again"
        expected = list(postings_of(each.tenant_id, draft))
    if _posted(connection, EntryKind.INVOICE, each.number) != _added(expected):
        yield "its entry in the ledger is not what it says"


def _missing(connection: Connection, numbers: Collection[str]) -> Iterator[str]:
    for series, last in connection.execute(select(document_series.c.series, document_series.c.last)):
        for index in range(1, last + 1):
            if (number := store.number_of(series, index)) not in numbers:
                yield f"{number}: missing"


def _credits(connection: Connection) -> Iterator[str]:
    for row in connection.execute(select(credit_grant)):
        amount = int(row.amount_picousd)
        expected = {("funds", row.tenant_id): amount, ("credits", row.tenant_id): -amount}
        if _posted(connection, EntryKind.GRANT, row.grant_id) != expected:
            yield f"{row.grant_id}: its entry in the ledger is not what was granted"


def _posted(connection: Connection, kind: EntryKind, subject: str) -> dict[tuple[str, str], Any]:
    query = (
        select(ledger_posting.c.account, ledger_posting.c.holder, ledger_posting.c.amount_picousd)
        .join(ledger_transaction, ledger_transaction.c.transaction_id == ledger_posting.c.transaction_id)
        .where(ledger_transaction.c.kind == kind.value, ledger_transaction.c.subject == subject)
    )
    return _sums(((row[0], row[1]), int(row[2])) for row in connection.execute(query))


def _added(lines: Iterable[Posting]) -> dict[tuple[str, str], Any]:
    return _sums(((str(line.account), line.holder), line.amount.picousd) for line in lines)


def _sums(amounts: Iterable[tuple[tuple[str, str], int]]) -> dict[tuple[str, str], Any]:
    sums: Counter[tuple[str, str]] = Counter()
    for account, amount in amounts:
        sums[account] += amount
    return {account: amount for account, amount in sums.items() if amount}
