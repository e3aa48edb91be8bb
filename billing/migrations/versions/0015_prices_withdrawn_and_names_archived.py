"""Future prices can be withdrawn, unpriced requests priced later; tenants and projects archived, keys
limited to some models.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


def upgrade() -> None:
    op.drop_constraint("uq_price_model_valid_from_ms", "price")
    op.create_index("ix_price_model_valid_from_ms", "price", ["model", "valid_from_ms"])
    op.create_table(
        "price_withdrawal",
        sa.Column("price_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("withdrawn_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.ForeignKeyConstraint(
            ["price_id"], ["price.price_id"], name=op.f("fk_price_withdrawal_price_id_price")
        ),
        sa.PrimaryKeyConstraint("price_id", name=op.f("pk_price_withdrawal")),
    )
    op.execute(
        "create trigger price_withdrawal_append_only before update or delete or truncate on price_withdrawal "
        "for each statement execute function refuse_change()"
    )
    op.add_column("ledger_transaction", sa.Column("corrects", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        op.f("fk_ledger_transaction_corrects_ledger_transaction"),
        "ledger_transaction", "ledger_transaction", ["corrects"], ["transaction_id"],
    )  # fmt: skip
    op.create_unique_constraint(op.f("uq_ledger_transaction_corrects"), "ledger_transaction", ["corrects"])
    op.create_check_constraint(
        op.f("ck_ledger_transaction_corrected_by"),
        "ledger_transaction",
        "corrects is null or pricing = 'priced'",
    )
    op.create_index("ix_ledger_transaction_request_id", "ledger_transaction", ["request_id"])
    op.create_index(
        "uq_ledger_transaction_first",
        "ledger_transaction",
        ["request_id"],
        unique=True,
        postgresql_where=sa.text("corrects is null"),
    )
    op.drop_constraint("uq_ledger_transaction_request_id", "ledger_transaction")
    op.drop_constraint(op.f("ck_tenant_status"), "tenant")
    op.create_check_constraint(
        op.f("ck_tenant_status"), "tenant", "status in ('active', 'suspended', 'archived')"
    )
    op.add_column("project", sa.Column("status", sa.Text(), server_default="active", nullable=False))
    op.create_check_constraint(op.f("ck_project_status"), "project", "status in ('active', 'archived')")
    op.add_column("api_key", sa.Column("models", postgresql.ARRAY(sa.Text()), nullable=True))
    op.create_table(
        "api_key_use",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("last_used_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_api_key_use")),
    )


def downgrade() -> None:
    """What was priced later is lost: it had no place before."""
    op.drop_table("api_key_use")
    op.drop_column("api_key", "models")
    op.drop_constraint(op.f("ck_project_status"), "project")
    op.drop_column("project", "status")
    op.execute("update tenant set status = 'suspended' where status = 'archived'")
    op.drop_constraint(op.f("ck_tenant_status"), "tenant")
    op.create_check_constraint(op.f("ck_tenant_status"), "tenant", "status in ('active', 'suspended')")
    for table in ("ledger_posting", "ledger_transaction", "price"):
        op.execute(f"alter table {table} disable trigger user")
    op.execute(
        "delete from ledger_posting where transaction_id in (select transaction_id from ledger_transaction "
        "where corrects is not null)"
    )
    op.execute("delete from ledger_transaction where corrects is not null")
    op.execute("delete from price where price_id in (select price_id from price_withdrawal)")
    for table in ("ledger_posting", "ledger_transaction", "price"):
        op.execute(f"alter table {table} enable trigger user")
    op.create_unique_constraint(
        op.f("uq_ledger_transaction_request_id"), "ledger_transaction", ["request_id"]
    )
    op.drop_index("uq_ledger_transaction_first", "ledger_transaction")
    op.drop_index("ix_ledger_transaction_request_id", "ledger_transaction")
    op.drop_column("ledger_transaction", "corrects")
    op.drop_table("price_withdrawal")
    op.drop_index("ix_price_model_valid_from_ms", "price")
    op.create_unique_constraint(op.f("uq_price_model_valid_from_ms"), "price", ["model", "valid_from_ms"])
