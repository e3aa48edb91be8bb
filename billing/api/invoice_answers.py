"""The answers about invoices, credits, and the terms by which tenants are billed."""

from typing import Any, Literal

from billing.api.answer import Answer, Decimal, Ms, Usd


class InvoiceRow(Answer):
    """An invoice, or a credit note, which corrects one: its amounts are below 0. [`from_ms`, `until_ms`): its
    period. `due` is `total` less the credits used or, of a credit note, less those that it gives back.
    `sha256`: of the document's bytes. `signature`: Ed25519, base64, of `taas invoice 1`, a line feed and
    `sha256`, by the key `key`; null: an earlier version issued it without one.
    """

    number: str
    kind: Literal["invoice", "credit_note"]
    tenant: str
    tenant_name: str | None
    period: str
    from_ms: Ms
    until_ms: Ms
    net: Usd
    total: Usd
    due: Usd
    issued_ms: Ms
    sha256: str
    key: str | None
    signature: str | None
    corrects: str | None


class InvoiceAnswer(InvoiceRow):
    """With its document, as docs/invoices.md describes it."""

    document: dict[str, Any]


class OpenFindings(Answer):
    """How many findings of a kind are still there: open, or acknowledged by somebody."""

    kind: str
    count: int


class InvoiceDraft(Answer):
    """What an invoice would say if its period were closed now. `waits`: why it cannot be closed yet; null: it
    can. `findings`: what the last audit found in the whole installation and is not resolved; null for a
    tenant.
    """

    tenant: str
    period: str
    waits: str | None
    findings: list[OpenFindings] | None
    document: dict[str, Any]


class InvoiceCheck(Answer):
    """Whether an invoice, computed again from the ledger, has the bytes that are stored, and these the
    SHA-256.
    """

    number: str
    same: bool
    sha256: str
    stored_sha256: str


class CreditAnswer(Answer):
    """`used`: by invoices, the oldest credit first. `left`: what can still pay; 0 once it has expired.
    `expires_ms` null: never.
    """

    credit: str
    tenant: str
    tenant_name: str | None
    usd: Usd
    used: Usd
    left: Usd
    granted_ms: Ms
    expires_ms: Ms | None
    note: str | None


class PrepaidAnswer(Answer):
    """Whether a tenant may use no more than its credits can pay."""

    tenant: str
    prepaid: bool


class TierAnswer(Answer):
    """So many percent off what is used in a period above this amount."""

    above: Usd
    percent: int


class TermsAnswer(Answer):
    """How a tenant is billed in periods that begin at `from_ms` or later. `day`: of the month, on which they
    begin. `commitment`: what it pays in a period at least.
    """

    tenant: str
    from_ms: Ms
    day: int
    tax_name: str | None
    tax_percent: Decimal
    commitment: Usd
    tiers: list[TierAnswer]


class CapacityPriceAnswer(Answer):
    """What a unit per second of a contract costs for an hour, used or not. `sla_percent`: so much of it is
    given back for capacity that was short.
    """

    contract: str
    from_ms: Ms
    unit_hour: Usd
    sla_percent: int
