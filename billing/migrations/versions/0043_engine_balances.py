"""The balance of each engine by minute."""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

_SUMS = tuple(
    f"{what}_{kind}"
    for what in ("produced", "billed", "absorbed", "open")
    for kind in ("prompt", "generation")
)


def upgrade() -> None:
    op.create_table(
        "engine_balance",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("minute", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("counters", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("lag_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "counters in ('read', 'silent', 'ended')", name=op.f("ck_engine_balance_counters")
        ),
        sa.PrimaryKeyConstraint("instance", "epoch", "minute", name=op.f("pk_engine_balance")),
    )
    op.create_index(
        op.f("ix_engine_balance_minute_instance_epoch"), "engine_balance", ["minute", "instance", "epoch"]
    )


def downgrade() -> None:
    """What was read is lost; the sums since each epoch began are not."""
    op.drop_table("engine_balance")
