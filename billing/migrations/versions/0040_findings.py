"""What audits found, as rows with an owner, a state and a reason."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "finding",
        sa.Column("finding_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("said", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("opened_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.Column("gone_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state in ('open', 'acknowledged', 'resolved', 'closed')", name=op.f("ck_finding_state")
        ),
        sa.CheckConstraint("state <> 'closed' or gone_ms is not null", name=op.f("ck_finding_closed")),
        sa.PrimaryKeyConstraint("finding_id", name=op.f("pk_finding")),
    )
    op.create_index(
        "uq_finding_there",
        "finding",
        ["kind", "about"],
        unique=True,
        postgresql_where=sa.text("gone_ms is null"),
    )
    op.create_index(op.f("ix_finding_opened_ms_finding_id"), "finding", ["opened_ms", "finding_id"])


def downgrade() -> None:
    """The next audit finds again what is still there."""
    op.drop_table("finding")
