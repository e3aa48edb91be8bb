"""Contracts keep what amendments have made of overflow and notice; pools keep what they were."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "contract", sa.Column("later", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False)
    )
    op.create_table(
        "pool_past",
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("headroom_permille", sa.Integer(), nullable=False),
        sa.Column("set_aside_mu_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_pool_past")),
    )
    op.create_index(op.f("ix_pool_past_pool"), "pool_past", ["pool"], unique=False)
    op.execute(
        "create trigger pool_past_append_only before update or delete or truncate on pool_past "
        "for each statement execute function refuse_change()"
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_pool_past_pool"), table_name="pool_past")
    op.drop_table("pool_past")
    op.drop_column("contract", "later")
