"""Pools whose number of running instances follows contracts and load."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "autoscaling",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("least", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("desired", sa.Integer(), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("decided_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("0 <= least and least <= most", name="ck_autoscaling_bounds"),
        sa.PrimaryKeyConstraint("pool", name="pk_autoscaling"),
    )


def downgrade() -> None:
    op.drop_table("autoscaling")
