"""Whether, and for how long, answers to a tenant's requests with an Idempotency-Key are stored."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "tenant", sa.Column("retain_answers_s", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.create_check_constraint(
        op.f("ck_tenant_retain_answers"), "tenant", "retain_answers_s between 0 and 86400"
    )


def downgrade() -> None:
    """Nobody's answers are stored any more."""
    op.drop_column("tenant", "retain_answers_s")
