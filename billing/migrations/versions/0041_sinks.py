"""Sinks: where recorded requests are delivered."""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


def upgrade() -> None:
    op.create_table(
        "sink",
        sa.Column("sink_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=True) for name in ("customer", "meter", "bearer")),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint(
            "format in ('cloudevents', 'openmeter', 'stripe', 'lago')", name=op.f("ck_sink_format")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_sink_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("sink_id", name=op.f("pk_sink")),
    )
    op.create_table(
        "sink_position",
        sa.Column("sink_id", sa.Text(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tried_ms", sa.BigInteger(), nullable=True),
        sa.Column("next_ms", sa.BigInteger(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["sink_id"], ["sink.sink_id"], name=op.f("fk_sink_position_sink_id_sink"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sink_id", "chain", name=op.f("pk_sink_position")),
    )
    op.create_table(
        "sink_skipped",
        sa.Column("sink_id", sa.Text(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
        sa.Column("skipped_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sink_id"], ["sink.sink_id"], name=op.f("fk_sink_skipped_sink_id_sink"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sink_id", "chain", "position", name=op.f("pk_sink_skipped")),
    )
    op.create_index(op.f("ix_sink_skipped_sink_id_skipped_ms"), "sink_skipped", ["sink_id", "skipped_ms"])
    op.execute("select audit_table('sink', 'sink_id', 'bearer,secret')")


def downgrade() -> None:
    """How far each was is lost."""
    for table in ("sink_skipped", "sink_position", "sink"):
        op.drop_table(table)
