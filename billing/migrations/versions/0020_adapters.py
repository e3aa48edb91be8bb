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
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_adapter_model_model"),
        sa.ForeignKeyConstraint(["base"], ["model.name"], name="fk_adapter_base_model"),
        sa.PrimaryKeyConstraint("model", name="pk_adapter"),
    )
    op.create_index("ix_adapter_base", "adapter", ["base"])


def downgrade() -> None:
    op.drop_table("adapter")
