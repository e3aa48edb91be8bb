"""What providers say that their accounts have used."""

import sqlalchemy as sa
from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "provider_count",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("provider", "instances", "day", "model")),
        sa.Column("prompt", sa.BigInteger(), nullable=False),
        sa.Column("cached", sa.BigInteger(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=True),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column(
            "taken_ms",
            sa.BigInteger(),
            server_default=sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("provider", "instances", "day", "model", name=op.f("pk_provider_count")),
    )


def downgrade() -> None:
    """The exports can be taken again."""
    op.drop_table("provider_count")
