"""Requests of which their engine says something else than their event; events by their end, and those
without the engine's final word.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "request_difference",
        sa.Column("instance", sa.Text(), primary_key=True),
        sa.Column("epoch", sa.Text(), primary_key=True),
        sa.Column("request_id", sa.Text(), primary_key=True),
        sa.Column("counted_prompt", sa.BigInteger(), nullable=False),
        sa.Column("counted_generation", sa.BigInteger(), nullable=False),
        sa.Column("recorded_prompt", sa.BigInteger(), nullable=False),
        sa.Column("recorded_generation", sa.BigInteger(), nullable=False),
        sa.Column(
            "found_ms",
            sa.BigInteger(),
            server_default=sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint"),
            nullable=False,
        ),
    )
    op.create_index(
        "ix_usage_event_instance_epoch_ended_ms", "usage_event", ["instance", "epoch", "ended_ms"]
    )
    op.drop_index("ix_usage_event_instance_epoch", "usage_event")
    op.drop_index("ix_usage_event_cut_off", "usage_event")
    op.create_index(
        "ix_usage_event_not_final",
        "usage_event",
        ["instance", "epoch"],
        postgresql_where=sa.text(
            "kind = 'request' and (ending = 'gateway_died' or usage_source in ('checkpoint', 'counted', "
            "'unread'))"
        ),
    )


def downgrade() -> None:
    op.drop_index("ix_usage_event_not_final", "usage_event")
    op.create_index(
        "ix_usage_event_cut_off",
        "usage_event",
        ["instance", "epoch"],
        postgresql_where=sa.text(
            "ending in ('gateway_died', 'engine_died', 'engine_error') and kind = 'request'"
        ),
    )
    op.create_index("ix_usage_event_instance_epoch", "usage_event", ["instance", "epoch"])
    op.drop_index("ix_usage_event_instance_epoch_ended_ms", "usage_event")
    op.drop_table("request_difference")
