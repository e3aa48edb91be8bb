"""Adapters: models that the engines of another model load."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "adapter",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="adapter_model_fkey"),
        sa.ForeignKeyConstraint(["base"], ["model.name"], name="adapter_base_fkey"),
        sa.PrimaryKeyConstraint("model", name="adapter_pkey"),
    )
    op.create_index("adapter_base_idx", "adapter", ["base"])


def downgrade() -> None:
    op.drop_table("adapter")
