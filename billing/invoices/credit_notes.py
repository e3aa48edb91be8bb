"""Credit notes: what of a final invoice is given back. The invoice itself stays.

What is due on the invoice is given back first, and then what credits have paid of it: as a credit.
"""

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import hold_prices
from billing.invoices import credits, prepaid, store
from billing.invoices.close import require_issuer, terms_of
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
    issuer: str,
    key: Ed25519PrivateKey,
    now_ms: int,
) -> Stored:
    """Give back so much of an invoice, before tax, and its tax. `issuer`: of one whose invoice, of an earlier
    version, names none. Raises NotFound; Invalid for an amount that is no positive number of cents; Conflict
    for more than the invoice, less earlier credit notes, has, or without an issuer.

    A credit that it gives back does not expire: the ones that paid may have.
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
    facts = Facts(**corrected.facts["facts"])
    facts = replace(facts, issuer=require_issuer(facts.issuer.strip() or issuer), issued_ms=now_ms)
    total = line.amount + tax
    tenant_id = corrected.tenant_id
    paid_by_credits = _paid_by_credits(connection, corrected, total)
    granted = []
    if paid_by_credits > ZERO:
        # As old as the period that it had paid for, so that the next invoice may use it.
        back = credits.grant(
            connection, tenant_id, paid_by_credits, corrected.until_ms, note=f"given back by {made_number}"
        )
        granted.append((back.credit, -paid_by_credits))
    document = credit_note_document(made_number, number, reason, facts, terms, line, tax, granted)
    key_id, signature = signed(document, key)
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
        due=total + paid_by_credits,
        issued_ms=now_ms,
    )
    store.write(connection, made)
    record_entry(connection, EntryKind.INVOICE, made_number, postings_of_note(made))
    prepaid.renew(connection, tenant_id, now_ms)
    return made


def _paid_by_credits(connection: Connection, corrected: Stored, total: Money) -> Money:
    """What of a credit note credits have paid: what it gives back, with earlier ones, beyond what was due."""
    given_back = store.given_back(connection, corrected.number) - total
    return max(ZERO, min(-total, given_back - corrected.due))


def postings_of_note(note: Stored) -> list[Posting]:
    """What it adds to the ledger."""
    return [
        Posting(Account.RECEIVABLE, note.tenant_id, note.due),
        # What the credit that it gives back was paid with.
        Posting(Account.FUNDS, note.tenant_id, note.total - note.due),
        Posting(Account.CORRECTION, note.tenant_id, -note.net),
        Posting(Account.TAX, note.tenant_id, note.net - note.total),
    ]
