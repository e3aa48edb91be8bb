"""The datasets of FOCUS 1.4 beside Cost and Usage: what was agreed (Contract Commitment), the billing
periods, and the lines of invoices and credit notes (Invoice Detail), which its rows name by `InvoiceId` and
`InvoiceDetailId`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

import orjson
from sqlalchemy import Connection, func, select

from billing.catalogue import models
from billing.catalogue.money import Money
from billing.contracts import store as contracts
from billing.contracts.terms import Contract
from billing.exports.billing_periods import BillingPeriod, credit_notes_of
from billing.exports.focus import Asked, account_of, credits_of, lines_of, said_of
from billing.exports.focus_rows import CAPACITY, COMMITMENT, UNIT_HOURS, Account, InvoiceLine, json_text
from billing.exports.table import ONE, Row
from billing.invoices.lines import capacity_amount
from billing.invoices.store import Stored
from billing.invoices.terms import capacity_charges
from billing.moments import DAY_MS, HOUR_MS
from billing.schema.capacity import contract_history

# No term that is agreed for ever has an end; the standard asks for one.
_NO_END_MS: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1000
_PAYMENT_TERMS: Final = "As agreed"
_STATUS: Final = {"signed": "Pending", "active": "Active", "notice_given": "Active"}


def billing_periods(connection: Connection, asked: Asked) -> Iterator[Row]:
    """One for each period: closed when its invoice was issued."""
    for each in asked.periods(connection):
        account = account_of(connection, asked, each)
        yield {
            "BillingPeriodCreated": each.from_ms,
            "BillingPeriodStart": each.from_ms,
            "BillingPeriodEnd": each.until_ms,
            "BillingPeriodLastUpdated": asked.now_ms if each.invoice is None else each.invoice.issued_ms,
            "BillingPeriodStatus": "Open" if each.invoice is None else "Closed",
            "InvoiceIssuerName": account.issuer,
        }


def invoice_details(connection: Connection, asked: Asked) -> Iterator[Row]:
    """One for each line of a document, its tax, and each credit that paid, those of nothing too."""
    for each in asked.periods(connection):
        account = account_of(connection, asked, each)
        notes = credit_notes_of(connection, asked.tenant.tenant_id, each.from_ms, each.until_ms)
        for made in ([] if each.invoice is None else [each.invoice]) + notes:
            yield from _details(account, made)


def _details(account: Account, made: Stored) -> Iterator[Row]:
    document = orjson.loads(made.document)
    tax = Money.parse(document["tax"]).picousd
    lines = lines_of(document)
    if tax:
        lines.append(InvoiceLine("tax", "tax", {}, tax, tax))
    lines += credits_of(document)
    for line in lines:
        category, said = _said(line)
        yield {
            "BilledCost": line.amount,
            "BillingAccountId": account.tenant_id,
            "BillingCurrency": "USD",
            "BillingPeriodStart": account.from_ms,
            "BillingPeriodEnd": account.until_ms,
            "ChargeCategory": category,
            "InvoiceDetailCreated": made.issued_ms,
            "InvoiceDetailDescription": said,
            "InvoiceDetailGrain": _grain(line),
            "InvoiceDetailId": line.number,
            "InvoiceDetailLastUpdated": made.issued_ms,
            "InvoiceId": made.number,
            "InvoiceIssueDate": made.issued_ms,
            "InvoiceIssueStatus": "Issued",
            "InvoiceIssuerName": document["issuer"] or account.issuer,
            "PaymentCurrency": "USD",
            "PaymentDueDate": None,
            "PaymentTerms": _PAYMENT_TERMS,
            "ReferenceInvoiceId": made.corrects or made.number,
            "x_InvoiceLineType": line.type,
        }


def _said(line: InvoiceLine) -> tuple[str, str]:
    return ("Tax", "Tax") if line.type == "tax" else said_of(line)


def _grain(line: InvoiceLine) -> str:
    """What makes the line one of its own."""
    names = {
        "period": "x_PeriodName", "project": "x_ProjectId", "model": "x_ModelName", "class": "x_ServiceTier",
        "contract": "x_ContractId", "kind": "x_TokenKind", "credit": "x_CreditId", "invoice": "x_InvoiceId",
    }  # fmt: skip
    told = {name: line.what.get(ours) for ours, name in names.items()}
    return json_text({"x_InvoiceLineType": line.type, **told}) or "{}"


def contract_commitments(connection: Connection, asked: Asked) -> Iterator[Row]:
    """The tenant's contracts that are not over before `from`, and its minimum commitment of each period."""
    tenant_id = asked.tenant.tenant_id
    held = contracts.list_all(connection, tenant_id=tenant_id, ends_after_ms=asked.from_ms)
    for each in sorted(held, key=lambda each: each.contract_id):
        if each.state != "draft" and each.terms.starts_ms < asked.until_ms:
            yield _of_contract(connection, asked, each)
    for period in asked.periods(connection):
        account = account_of(connection, asked, period)
        if account.commitment is not None:
            yield _of_minimum(asked, period, account, *account.commitment)


def _of_contract(connection: Connection, asked: Asked, each: Contract) -> Row:
    terms = each.terms
    pieces = capacity_charges(connection, terms.starts_ms, each.effective_end_ms, terms.tenant_id)
    of_it = [piece for piece, _ in pieces if piece.contract == each.contract_id]
    changed = select(func.max(contract_history.c.at_ms)).where(
        contract_history.c.contract_id == each.contract_id
    )
    last_ms = connection.execute(changed).scalar_one() or each.created_ms
    early = each.effective_end_ms < terms.ends_ms
    status = "Canceled" if early else "Expired"
    names = sorted(models.names_in_pool(connection, terms.pool))
    return _commitment(
        asked,
        ContractCommitmentApplicability=_applicability(names),
        ContractCommitmentBenefitCategory="Availability",
        ContractCommitmentCategory="Usage",
        ContractCommitmentCost=round(sum(map(capacity_amount, of_it), Fraction(0))) if of_it else None,
        ContractCommitmentCreated=each.created_ms,
        ContractCommitmentDescription=f"Reserved capacity in {terms.pool}, paid whether it is used or not",
        ContractCommitmentDurationType=_duration(terms.starts_ms, terms.ends_ms),
        ContractCommitmentFulfillmentInterval="Hourly",
        ContractCommitmentId=each.contract_id,
        ContractCommitmentLastUpdated=max(last_ms, each.created_ms),
        ContractCommitmentLifecycleStatus=_STATUS.get(each.state, status),
        ContractCommitmentModel="Continuous",
        ContractCommitmentPeriodEnd=each.effective_end_ms,
        ContractCommitmentPeriodStart=terms.starts_ms,
        ContractCommitmentQuantity=_unit_hours(each),
        ContractCommitmentType=CAPACITY,
        ContractCommitmentUnit=UNIT_HOURS,
        ContractId=each.contract_id,
        ContractPeriodEnd=each.effective_end_ms,
        ContractPeriodStart=terms.starts_ms,
    )


def _of_minimum(asked: Asked, period: BillingPeriod, account: Account, contract: str, commitment: str) -> Row:
    """`contract`: the terms, `TENANT/terms/FROM_MS`; they hold until others do."""
    since_ms = max(int(contract.rpartition("/")[2]), asked.tenant.created_ms)
    since_ms = min(since_ms, period.from_ms)
    over = period.invoice is not None or period.until_ms <= asked.now_ms
    amount = period.terms.commitment
    return _commitment(
        asked,
        ContractCommitmentApplicability='{"IsGlobalScope":true}',
        ContractCommitmentBenefitCategory="Other",
        ContractCommitmentCategory="Spend",
        ContractCommitmentCost=amount.picousd,
        ContractCommitmentCreated=since_ms,
        ContractCommitmentDescription=f"At least {amount} USD for {period.name}",
        ContractCommitmentDurationType="1 Month",
        ContractCommitmentFulfillmentInterval="Monthly",
        ContractCommitmentId=commitment,
        ContractCommitmentLastUpdated=since_ms,
        ContractCommitmentLifecycleStatus="Expired" if over else "Active",
        ContractCommitmentModel="Discontinuous",
        ContractCommitmentPeriodEnd=period.until_ms,
        ContractCommitmentPeriodStart=period.from_ms,
        ContractCommitmentQuantity=None,
        ContractCommitmentType=COMMITMENT,
        ContractCommitmentUnit=None,
        ContractId=contract,
        ContractPeriodEnd=_NO_END_MS,
        ContractPeriodStart=since_ms,
    )


def _commitment(asked: Asked, **given: Any) -> Row:
    issuer = asked.issuer_name
    return {
        "BillingCurrency": "USD",
        "ContractCommitmentDiscountPercentage": None,
        "ContractCommitmentOfferCategory": "Negotiated",
        "ContractCommitmentPaymentInterval": "Monthly",
        "ContractCommitmentPaymentModel": "No Upfront",
        "InvoiceIssuerName": issuer,
        "ServiceProviderName": issuer,
        **given,
    }


def _unit_hours(each: Contract) -> int:
    ends_ms = each.effective_end_ms
    steps = each.terms.steps
    mu_ms = sum(
        step.mu_s * max(0, min(ends_ms, until_ms) - max(step.from_ms, each.terms.starts_ms))
        for step, until_ms in zip(steps, [*(step.from_ms for step in steps[1:]), ends_ms], strict=True)
    )
    return round(Fraction(mu_ms * ONE, 1_000 * HOUR_MS))


def _applicability(names: list[str]) -> str:
    """Requests of these models; of a pool without models, more than can be said."""
    if not names:
        return '{"IsComplexScope":true}'
    rule = {"Dimension": "ResourceId", "Operator": "In", "Values": names}
    return orjson.dumps({"InclusionOperator": "And", "Inclusions": [rule]}).decode()


def _duration(from_ms: int, until_ms: int) -> str:
    """In months, if it is so many; else in days, at least one."""
    begins, ends = (datetime.fromtimestamp(each // 1000, UTC) for each in (from_ms, until_ms))
    months = (ends.year - begins.year) * 12 + ends.month - begins.month
    if months > 0 and (ends.day, ends.time()) == (begins.day, begins.time()):
        return f"{months} Month{'s' if months > 1 else ''}"
    count = max(1, round((until_ms - from_ms) / DAY_MS))
    return f"{count} Day{'s' if count > 1 else ''}"
