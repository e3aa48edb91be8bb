"""Tables of invoices: the terms by which tenants are billed, prices of reserved capacity, credits, and the
documents. It owns columns, not how they are filled.

Amounts are whole pico-dollars, times ms since the epoch. All are append-only; of terms and prices for the
same moment the newest version holds.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.schema.capacity import contract
from billing.schema.catalogue import tenant
from billing.schema.clock import NOW_MS
from billing.schema.ledger import ledger_transaction
from billing.schema.metadata import metadata

# How a tenant is billed, for periods that begin at `from_ms` or later. `day`: of the month, on which its
# periods begin. `tax_basis_points`: hundredths of a percent. `commitment_picousd`: what it pays in a period
# at least. `tiers`: [[from picousd, percent off], …] of what it uses in a period.
tenant_terms = Table(
    "tenant_terms",
    metadata,
    Column("version", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),
    Column("tax_name", Text),
    Column("tax_basis_points", Integer, nullable=False),
    Column("commitment_picousd", Numeric(38, 0), nullable=False),
    Column("tiers", JSONB, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("day between 1 and 31", name="day"),
    CheckConstraint("tax_basis_points between 0 and 10000", name="tax"),
    CheckConstraint("commitment_picousd >= 0", name="commitment"),
    Index(None, "tenant_id", "from_ms"),
)

# What a contract's capacity costs, used or not: pico-dollars for a unit per second, held for an hour.
# `sla_percent`: so much of it is given back for capacity that was short.
capacity_price = Table(
    "capacity_price",
    metadata,
    Column("version", BigInteger, Identity(always=True), primary_key=True),
    Column("contract_id", Text, ForeignKey(contract.c.contract_id), nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("unit_hour_picousd", BigInteger, nullable=False),
    Column("sla_percent", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("unit_hour_picousd >= 0", name="not_negative"),
    CheckConstraint("sla_percent between 0 and 1000", name="sla"),
    Index(None, "contract_id", "from_ms"),
)

# Paid in advance, or given. It pays invoices until `expires_ms`; null: for ever.
credit_grant = Table(
    "credit_grant",
    metadata,
    Column("grant_id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("amount_picousd", Numeric(38, 0), nullable=False),
    Column("granted_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("note", Text),
    CheckConstraint("amount_picousd > 0", name="positive"),
    CheckConstraint("expires_ms > granted_ms", name="expires"),
    Index(None, "tenant_id", "granted_ms", "grant_id"),
)

# The numbers of documents: the last of each series. It is locked by whoever takes the next, so that there are
# no gaps.
document_series = Table(
    "document_series",
    metadata,
    Column("series", Text, primary_key=True),
    Column("last", Integer, nullable=False),
)

# Invoices and credit notes. `document` is the legal object: canonical JSON, whose SHA-256 is signed
# (`signature` of the key `key_id`, both null where there was no key). `facts`: what it was made of beside the
# ledger. `ledger_upto`: transactions up to this one were counted. `corrects`: the invoice of a credit note.
invoice = Table(
    "invoice",
    metadata,
    Column("number", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("period", Text, nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
    Column("ledger_upto", BigInteger, nullable=False),
    Column("facts", JSONB, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("key_id", Text),
    Column("signature", Text),
    Column("corrects", Text, ForeignKey("invoice.number")),
    Column("net_picousd", Numeric(38, 0), nullable=False),
    Column("total_picousd", Numeric(38, 0), nullable=False),
    Column("due_picousd", Numeric(38, 0), nullable=False),
    Column("issued_ms", BigInteger, nullable=False),
    CheckConstraint("kind in ('invoice', 'credit_note')", name="kind"),
    CheckConstraint("(kind = 'credit_note') = (corrects is not null)", name="corrects"),
    CheckConstraint("from_ms < until_ms", name="period"),
    Index("uq_invoice_period", "tenant_id", "period", unique=True, postgresql_where=text("kind = 'invoice'")),
    Index(None, "issued_ms", "number"),
)

# What an invoice took of a credit.
credit_use = Table(
    "credit_use",
    metadata,
    Column("number", Text, ForeignKey(invoice.c.number), primary_key=True),
    Column("grant_id", Text, ForeignKey(credit_grant.c.grant_id), primary_key=True),
    Column("amount_picousd", Numeric(38, 0), nullable=False),
    CheckConstraint("amount_picousd > 0", name="positive"),
    Index(None, "grant_id"),
)

# Until when each tenant's usage is on invoices. What is recorded later of a moment before goes to the next
# one: a trigger of `ledger_transaction` notes it.
invoiced = Table(
    "invoiced",
    metadata,
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), primary_key=True),
    Column("until_ms", BigInteger, nullable=False),
    Column("ledger_upto", BigInteger, nullable=False),
)
late_transaction = Table(
    "late_transaction",
    metadata,
    Column(
        "transaction_id",
        BigInteger,
        ForeignKey(ledger_transaction.c.transaction_id),
        primary_key=True,
        autoincrement=False,
    ),
    Column("tenant_id", Text, nullable=False),
    Index(None, "tenant_id", "transaction_id"),
)
