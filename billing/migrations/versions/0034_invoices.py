"""Invoices, the terms by which tenants are billed, prices of reserved capacity, credits, and what is recorded
after its invoice.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_APPEND_ONLY = (
    "tenant_terms", "capacity_price", "credit_grant", "invoice", "credit_use", "late_transaction",
)  # fmt: skip
_TABLES = (
    "credit_use", "late_transaction", "invoiced", "invoice", "document_series", "credit_grant",
    "capacity_price", "tenant_terms",
)  # fmt: skip


def upgrade() -> None:
    _create_terms()
    _create_credits()
    _create_documents()
    for table in _APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )
    op.execute("select audit_table('tenant_terms', 'version')")
    op.execute(
        "select audit_table('capacity_price', 'version', '', '', "
        "'(select tenant_id from contract where contract_id = $1->>''contract_id'')')"
    )
    op.execute("select audit_table('credit_grant', 'grant_id')")
    op.execute("select audit_table('invoice', 'number', '', 'document,facts')")
    op.execute("""
        create function note_late_transaction() returns trigger language plpgsql as $$
        begin
          insert into late_transaction (transaction_id, tenant_id)
          select t.transaction_id, e.tenant
          from added t join usage_event e using (request_id) join invoiced i on i.tenant_id = e.tenant
          where t.pricing = 'priced' and e.kind = 'request' and e.ended_ms < i.until_ms;
          return null;
        end $$
    """)
    op.execute(
        "create trigger ledger_transaction_late after insert on ledger_transaction "
        "referencing new table as added for each statement execute function note_late_transaction()"
    )


def _create_terms() -> None:
    op.create_table(
        "tenant_terms",
        sa.Column("version", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("tax_name", sa.Text(), nullable=True),
        sa.Column("tax_basis_points", sa.Integer(), nullable=False),
        sa.Column("commitment_picousd", sa.Numeric(38, 0), nullable=False),
        sa.Column("tiers", postgresql.JSONB(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("day between 1 and 31", name=op.f("ck_tenant_terms_day")),
        sa.CheckConstraint("tax_basis_points between 0 and 10000", name=op.f("ck_tenant_terms_tax")),
        sa.CheckConstraint("commitment_picousd >= 0", name=op.f("ck_tenant_terms_commitment")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_tenant_terms_tenant_id_tenant")
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_tenant_terms")),
    )
    op.create_index(op.f("ix_tenant_terms_tenant_id_from_ms"), "tenant_terms", ["tenant_id", "from_ms"])
    op.create_table(
        "capacity_price",
        sa.Column("version", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("unit_hour_picousd", sa.BigInteger(), nullable=False),
        sa.Column("sla_percent", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("unit_hour_picousd >= 0", name=op.f("ck_capacity_price_not_negative")),
        sa.CheckConstraint("sla_percent between 0 and 1000", name=op.f("ck_capacity_price_sla")),
        sa.ForeignKeyConstraint(
            ["contract_id"], ["contract.contract_id"], name=op.f("fk_capacity_price_contract_id_contract")
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_capacity_price")),
    )
    op.create_index(
        op.f("ix_capacity_price_contract_id_from_ms"), "capacity_price", ["contract_id", "from_ms"]
    )


def _create_credits() -> None:
    op.create_table(
        "credit_grant",
        sa.Column("grant_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.Column("granted_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.CheckConstraint("amount_picousd > 0", name=op.f("ck_credit_grant_positive")),
        sa.CheckConstraint("expires_ms > granted_ms", name=op.f("ck_credit_grant_expires")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_credit_grant_tenant_id_tenant")
        ),
        sa.PrimaryKeyConstraint("grant_id", name=op.f("pk_credit_grant")),
    )
    op.create_index(
        op.f("ix_credit_grant_tenant_id_granted_ms_grant_id"),
        "credit_grant",
        ["tenant_id", "granted_ms", "grant_id"],
    )


def _create_documents() -> None:
    op.create_table(
        "document_series",
        sa.Column("series", sa.Text(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("series", name=op.f("pk_document_series")),
    )
    op.create_table(
        "invoice",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("ledger_upto", sa.BigInteger(), nullable=False),
        sa.Column("facts", postgresql.JSONB(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.Column("corrects", sa.Text(), nullable=True),
        sa.Column("net_picousd", sa.Numeric(38, 0), nullable=False),
        sa.Column("total_picousd", sa.Numeric(38, 0), nullable=False),
        sa.Column("due_picousd", sa.Numeric(38, 0), nullable=False),
        sa.Column("issued_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind in ('invoice', 'credit_note')", name=op.f("ck_invoice_kind")),
        sa.CheckConstraint(
            "(kind = 'credit_note') = (corrects is not null)", name=op.f("ck_invoice_corrects")
        ),
        sa.CheckConstraint("from_ms < until_ms", name=op.f("ck_invoice_period")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_invoice_tenant_id_tenant")
        ),
        sa.ForeignKeyConstraint(["corrects"], ["invoice.number"], name=op.f("fk_invoice_corrects_invoice")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_invoice")),
    )
    op.create_index(
        "uq_invoice_period",
        "invoice",
        ["tenant_id", "period"],
        unique=True,
        postgresql_where=sa.text("kind = 'invoice'"),
    )
    op.create_index(op.f("ix_invoice_issued_ms_number"), "invoice", ["issued_ms", "number"])
    op.create_table(
        "credit_use",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("grant_id", sa.Text(), nullable=False),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.CheckConstraint("amount_picousd > 0", name=op.f("ck_credit_use_positive")),
        sa.ForeignKeyConstraint(["number"], ["invoice.number"], name=op.f("fk_credit_use_number_invoice")),
        sa.ForeignKeyConstraint(
            ["grant_id"], ["credit_grant.grant_id"], name=op.f("fk_credit_use_grant_id_credit_grant")
        ),
        sa.PrimaryKeyConstraint("number", "grant_id", name=op.f("pk_credit_use")),
    )
    op.create_index(op.f("ix_credit_use_grant_id"), "credit_use", ["grant_id"])
    op.create_table(
        "invoiced",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("ledger_upto", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_invoiced_tenant_id_tenant")
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_invoiced")),
    )
    op.create_table(
        "late_transaction",
        sa.Column("transaction_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transaction.transaction_id"],
            name=op.f("fk_late_transaction_transaction_id_ledger_transaction"),
        ),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_late_transaction")),
    )
    op.create_index(
        op.f("ix_late_transaction_tenant_id_transaction_id"),
        "late_transaction",
        ["tenant_id", "transaction_id"],
    )


def downgrade() -> None:
    """Invoices are lost with it."""
    op.execute("drop trigger ledger_transaction_late on ledger_transaction")
    op.execute("drop function note_late_transaction()")
    for table in _TABLES:
        op.drop_table(table)
