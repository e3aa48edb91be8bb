"""Of which key another came by rotation, whose budgets it has."""

import sqlalchemy as sa
from alembic import op

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("first_key_id", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_api_key_first_key_id_api_key"), "api_key", "api_key", ["first_key_id"], ["key_id"]
    )
    op.create_index(
        op.f("ix_api_key_first_key_id"),
        "api_key",
        ["first_key_id"],
        postgresql_where=sa.text("first_key_id is not null"),
    )


def downgrade() -> None:
    op.drop_column("api_key", "first_key_id")
