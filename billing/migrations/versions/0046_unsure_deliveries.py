"""What a receiver that forgets ids may have taken already."""

import sqlalchemy as sa
from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("unsure_ms", "unsure_upto"):
        op.add_column("sink_position", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("sink_skipped", sa.Column("why", sa.Text(), server_default="too_old", nullable=False))
    op.create_check_constraint(op.f("ck_sink_skipped_why"), "sink_skipped", "why in ('too_old', 'unsure')")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_sink_skipped_why"), "sink_skipped")
    op.drop_column("sink_skipped", "why")
    for name in ("unsure_upto", "unsure_ms"):
        op.drop_column("sink_position", name)
