"""Admin keys with roles."""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "admin_key",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("display", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text()),
        sa.Column("expires_at_ms", sa.BigInteger()),
        sa.Column("revoked_ms", sa.BigInteger()),
        sa.Column("last_used_ms", sa.BigInteger()),
        sa.Column(
            "created_ms",
            sa.BigInteger(),
            server_default=sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "case when tenant_id is null then role in ('operator', 'finance', 'auditor') "
            "else role in ('admin', 'member', 'billing', 'viewer') end",
            name=op.f("ck_admin_key_role"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_admin_key_tenant_id_tenant")
        ),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_admin_key")),
        sa.UniqueConstraint("hash", name=op.f("uq_admin_key_hash")),
    )
    op.create_index(op.f("ix_admin_key_created_ms_key_id"), "admin_key", ["created_ms", "key_id"])
    op.execute("select audit_table('admin_key', 'key_id', 'hash', 'last_used_ms')")


def downgrade() -> None:
    """The keys are lost."""
    op.drop_table("admin_key")
