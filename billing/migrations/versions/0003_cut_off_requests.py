"""Finds the requests that were cut off by their engine's end, beside those whose gateway died: a residual
may be theirs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_usage_event_gateway_died", "usage_event")
    op.create_index(
        "ix_usage_event_cut_off",
        "usage_event",
        ["instance", "epoch"],
        postgresql_where=sa.text(
            "ending in ('gateway_died', 'engine_died', 'engine_error') and kind = 'request'"
        ),
    )


def downgrade() -> None:
    op.drop_index("ix_usage_event_cut_off", "usage_event")
    op.create_index(
        "ix_usage_event_gateway_died",
        "usage_event",
        ["instance", "epoch"],
        postgresql_where=sa.text("ending = 'gateway_died' and kind = 'request'"),
    )
