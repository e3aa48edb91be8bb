"""Credit notes: what of a final invoice is given back. The invoice itself stays."""

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import hold_prices
from billing.invoices import store
from billing.invoices.close import terms_of
from billing.invoices.document import Facts, credit_note_document, sha256, signed
from billing.invoices.lines import CENT_PICOUSD, Line, tax_on
from billing.invoices.store import Stored
from billing.ledger.accounts import Account, EntryKind, Posting, record_entry
from billing.refusals import Conflict, Invalid


def issue(
    connection: Connection,
    number: str,
    amount: Money,
    reason: str,
    *,
    key: Ed25519PrivateKey | None,
    now_ms: int,
) -> Stored:
    """Give back so much of an invoice, before tax, and its tax. Raises NotFound; Invalid for an amount that
    is no positive number of cents; Conflict for more than the invoice, less earlier credit notes, has.
    """
    hold_prices(connection)
    corrected = store.find(connection, number)
    if corrected.kind != "invoice":
        raise Invalid(f"{number} is no invoice.", param="number")
    if amount <= ZERO or amount.picousd % CENT_PICOUSD:
        raise Invalid("A credit note is of whole cents, more than none.", param="usd")
    left = corrected.net - store.credited(connection, number)
    if amount > left:
        raise Conflict(f"{number} has {left} USD left to give back.", param="usd", code="exceeds_invoice")
    made_number = store.next_number(connection, "credit_note")
    terms = terms_of(corrected.facts)
    line = Line.of("correction", {"invoice": number}, -amount.picousd)
    # What is left of the tax follows what is left of the invoice, so that all notes together give back all
    # of it and no more, however they are rounded.
    tax = tax_on(left - amount, terms) - tax_on(left, terms)
    facts = replace(Facts(**corrected.facts["facts"]), issued_ms=now_ms)
    document = credit_note_document(made_number, number, reason, facts, terms, line, tax)
    key_id, signature = signed(document, key)
    total = line.amount + tax
    made = replace(
        corrected,
        number=made_number,
        kind="credit_note",
        facts={"reason": reason},
        document=document,
        sha256=sha256(document),
        key_id=key_id,
        signature=signature,
        corrects=number,
        net=line.amount,
        total=total,
        due=total,
        issued_ms=now_ms,
    )
    store.write(connection, made)
    record_entry(connection, EntryKind.INVOICE, made_number, postings_of_note(made))
    return made


def postings_of_note(note: Stored) -> list[Posting]:
    """What it adds to the ledger."""
    return [
        Posting(Account.RECEIVABLE, note.tenant_id, note.total),
        Posting(Account.CORRECTION, note.tenant_id, -note.net),
        Posting(Account.TAX, note.tenant_id, note.net - note.total),
    ]
