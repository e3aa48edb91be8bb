"""What retention has dropped, and what proves it."""

import sqlalchemy as sa
from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_TOTALS = ("billed_prompt", "billed_output", "absorbed_prompt", "absorbed_output")
_TABLES = ("dropped_day", "dropped_event", "dropped_total")


def upgrade() -> None:
    op.create_table(
        "dropped_day",
        sa.Column("dropped_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("kept", sa.BigInteger(), nullable=False),
        sa.Column("dropped_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.PrimaryKeyConstraint("dropped_id", name=op.f("pk_dropped_day")),
    )
    op.create_table(
        "dropped_event",
        sa.Column("transaction_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.Column("internal", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_dropped_event")),
    )
    op.create_table(
        "dropped_total",
        sa.Column("dropped_id", sa.BigInteger(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _TOTALS),
        sa.ForeignKeyConstraint(
            ["dropped_id"], ["dropped_day.dropped_id"], name=op.f("fk_dropped_total_dropped_id_dropped_day")
        ),
        sa.PrimaryKeyConstraint("dropped_id", "instance", "epoch", name=op.f("pk_dropped_total")),
    )
    for table in _TABLES:
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )
    op.execute("select audit_table('dropped_day', 'day')")


def downgrade() -> None:
    """What proves dropped events is lost."""
    for table in reversed(_TABLES):
        op.drop_table(table)
