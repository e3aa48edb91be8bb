"""A tenant's charges as FOCUS has them: Cost and Usage of whole billing periods, from final invoices and, of
what is on none yet, from the ledger. It reads, and gives rows to whoever writes them.

An open period has its usage and its reserved capacity so far, exact and without an invoice: what an invoice
adds (rounding, discounts, what contracts were short of, commitments, tax, credits) is there once there is
one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from sqlalchemy import Connection, select

from billing.catalogue.money import Money
from billing.catalogue.price_book import Price, PriceBook, list_prices, prices_by_id
from billing.catalogue.tenants import Tenant
from billing.exports.billing_periods import (
    BillingPeriod,
    credit_notes_of,
    earlier_names,
    periods_between,
    used_by_day,
    used_mu_by_day,
    work_of_contracts,
)
from billing.exports.focus_rows import Account, Charges, InvoiceLine
from billing.exports.table import Row
from billing.invoices.lines import Reserved
from billing.invoices.store import Stored
from billing.invoices.terms import capacity_charges, list_terms
from billing.schema.capacity import contract as contract_table
from billing.schema.catalogue import project
from billing.wire.invoice_lines import LINE_TYPES

# Of whom the product is, where the settings do not say.
_NO_ISSUER: Final = "taas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which periods of whom: those that overlap [from, until), as of now."""

    tenant: Tenant
    from_ms: int
    until_ms: int
    now_ms: int
    issuer: str

    @property
    def issuer_name(self) -> str:
        """Where no document says another."""
        return self.issuer or _NO_ISSUER

    def periods(self, connection: Connection) -> list[BillingPeriod]:
        """The first first."""
        return periods_between(connection, self.tenant, self.from_ms, self.until_ms, self.now_ms)


def cost_and_usage(connection: Connection, asked: Asked) -> Iterator[Row]:
    """The rows, a period after the other; in a transaction that sees one state of the ledger."""
    for each in asked.periods(connection):
        account = account_of(connection, asked, each)
        if each.invoice is None:
            yield from _open_period(connection, asked, each, account)
        else:
            yield from _invoice(connection, asked, each, account, each.invoice)
        for note in credit_notes_of(connection, asked.tenant.tenant_id, each.from_ms, each.until_ms):
            yield from _credit_note(account, note)


def account_of(connection: Connection, asked: Asked, each: BillingPeriod) -> Account:
    """What is the same in all rows of a period: as the invoice has it, else as it is now."""
    tenant = asked.tenant
    document = {} if each.invoice is None else orjson.loads(each.invoice.document)
    return Account(
        tenant_id=tenant.tenant_id,
        tenant_name=document.get("tenant", {}).get("name") or tenant.name,
        issuer=document.get("issuer") or asked.issuer_name,
        from_ms=each.from_ms,
        until_ms=each.until_ms,
        names=document.get("project_names") or _project_names(connection, tenant.tenant_id),
        commitment=commitment_of(connection, tenant.tenant_id, each),
        earlier=frozenset(
            earlier_names(connection, tenant.tenant_id)
            if each.invoice is None
            else [earlier["period"] for earlier in document.get("earlier", [])]
        ),
    )


def commitment_of(connection: Connection, tenant_id: str, each: BillingPeriod) -> tuple[str, str] | None:
    """The ids of the terms and of the minimum commitment that they have for a period, if they have one."""
    if not each.terms.commitment.picousd:
        return None
    held = [dated.from_ms for dated in list_terms(connection, tenant_id) if dated.from_ms <= each.from_ms]
    return f"{tenant_id}/terms/{held[-1]}", f"{tenant_id}/commitment/{each.name}"


def _invoice(
    connection: Connection, asked: Asked, each: BillingPeriod, account: Account, stored: Stored
) -> Iterator[Row]:
    document = orjson.loads(stored.document)
    lines = lines_of(document)
    charges = Charges(account, stored.number)
    numbers = {_key(line.what): line.number for line in lines if line.type == "usage"}
    yield from _usage(connection, asked.tenant.tenant_id, each, charges, numbers)
    pieces = [(_reserved(line.what), line.number) for line in lines if line.type == "capacity"]
    yield from _capacity(connection, asked.tenant.tenant_id, charges, pieces)
    for line in lines:
        if line.type == "commitment":
            yield from charges.commitment(line.number, line.exact)
        elif line.type not in {"usage", "capacity"}:
            yield _other(charges, line)
        yield from charges.rounding(line)
    yield from _tax_and_credits(charges, document)


def _tax_and_credits(charges: Charges, document: dict[str, Any], **given: Any) -> Iterator[Row]:
    tax = document["terms"]["tax"]
    amount, net = (Money.parse(document[name]).picousd for name in ("tax", "net"))
    if amount:
        yield charges.tax(amount, net, tax["name"], tax["basis_points"], **given)
    for line in credits_of(document):
        yield charges.other(line, *said_of(line), **given)


def _open_period(
    connection: Connection, asked: Asked, each: BillingPeriod, account: Account
) -> Iterator[Row]:
    tenant_id = asked.tenant.tenant_id
    charges = Charges(account)
    yield from _usage(connection, tenant_id, each, charges, {})
    until_ms = min(each.until_ms, asked.now_ms)
    reserved = capacity_charges(connection, each.from_ms, until_ms, tenant_id)
    yield from _capacity(connection, tenant_id, charges, [(piece, None) for piece, _ in reserved])


def _credit_note(account: Account, note: Stored) -> Iterator[Row]:
    """In the period in which it was issued, of the charges of the one that it corrects."""
    document = orjson.loads(note.document)
    issuer = document["issuer"] or account.issuer
    charges = Charges(replace(account, issuer=issuer, commitment=None), note.number)
    of_then: dict[str, Any] = {
        "ChargeClass": "Correction", "ChargePeriodStart": note.from_ms, "ChargePeriodEnd": note.until_ms,
    }  # fmt: skip
    for line in lines_of(document):
        yield _other(charges, line, **of_then)
        yield from charges.rounding(line)
    yield from _tax_and_credits(charges, document, **of_then)


def lines_of(document: dict[str, Any]) -> list[InvoiceLine]:
    """As the document has them."""
    return [
        InvoiceLine(
            str(each["line"]), each["type"], each, Money.parse(each["exact"]).picousd,
            Money.parse(each["amount"]).picousd,
        )
        for each in document["lines"]
    ]  # fmt: skip


def credits_of(document: dict[str, Any]) -> Iterator[InvoiceLine]:
    """What of it credits pay or, of a credit note, get back; notes of earlier versions have none."""
    for credit in document.get("credits", ()):
        paid = -Money.parse(credit["amount"]).picousd
        yield InvoiceLine(f"credit/{credit['credit']}", "credit", credit, paid, paid)


def said_of(line: InvoiceLine) -> tuple[str, str]:
    """The category of a line, and a sentence."""
    if line.type == "credit":
        return "Credit", f"{'Paid by' if line.amount < 0 else 'Given back as'} {line.what['credit']}"
    type_ = LINE_TYPES[line.type]
    return type_.category, type_.said.format(**line.what)


def _other(charges: Charges, line: InvoiceLine, **given: Any) -> Row:
    category, said = said_of(line)
    if line.type == "sla_credit":
        contract = line.what["contract"]
        given |= {
            "ChargePeriodStart": line.what["from_ms"], "ChargePeriodEnd": line.what["until_ms"],
            "CapacityReservationId": contract, "CommitmentDiscountId": contract,
            "CommitmentDiscountName": contract, "CommitmentDiscountCategory": "Usage",
            "CommitmentDiscountType": "Reserved capacity",
        }  # fmt: skip
    return charges.other(line, category, said, **given)


def _usage(
    connection: Connection, tenant_id: str, each: BillingPeriod, charges: Charges, numbers: dict[Any, str]
) -> Iterator[Row]:
    """With the price that each had, and the price for all at the beginning of its day."""
    books: dict[str, PriceBook] = {}
    prices: dict[int, Price] = {}
    for used in used_by_day(connection, tenant_id, each):
        if used.price_id not in prices:
            prices |= prices_by_id(connection, [used.price_id])
        if used.model not in books:
            books[used.model] = PriceBook(list_prices(connection, used.model))
        price = prices[used.price_id]
        listed = books[used.model].at(used.model, max(used.from_ms, price.valid_from_ms)) or price
        yield from charges.usage(used, price, listed, numbers)


def _capacity(
    connection: Connection, tenant_id: str, charges: Charges, pieces: Iterable[tuple[Reserved, str | None]]
) -> Iterator[Row]:
    held = [(piece, line) for piece, line in pieces if piece.mu_s]
    if not held:
        return
    until_ms = max(piece.until_ms for piece, _ in held)
    work = work_of_contracts(connection, tenant_id, min(piece.from_ms for piece, _ in held), until_ms)
    query = select(contract_table.c.contract_id, contract_table.c.pool)
    named = contract_table.c.contract_id.in_({piece.contract for piece, _ in held})
    pools = {row[0]: row[1] for row in connection.execute(query.where(named))}
    for piece, line in held:
        used = used_mu_by_day(connection, piece)
        yield from charges.capacity(piece, line, used, work, pools[piece.contract])


def _project_names(connection: Connection, tenant_id: str) -> dict[str, str]:
    query = select(project.c.project_id, project.c.name).where(project.c.tenant_id == tenant_id)
    return {row[0]: row[1] for row in connection.execute(query)}


def _key(what: Any) -> tuple[Any, ...]:
    names = "period", "project", "model", "class", "contract", "price_id", "kind"
    return tuple(what[name] for name in names)


def _reserved(what: Any) -> Reserved:
    return Reserved(
        contract=what["contract"],
        from_ms=what["from_ms"],
        until_ms=what["until_ms"],
        mu_s=what["milliunits_per_second"],
        picousd=Money.parse(what["price_per_unit_hour"]).picousd,
    )
