"""What machines cost, draw and are for, from a moment on."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


def upgrade() -> None:
    op.create_table(
        "machine_terms",
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("cost_picousd_hour", sa.Numeric(38, 0), nullable=True),
        sa.Column("watts", sa.BigInteger(), nullable=True),
        sa.Column("overhead_permille", sa.Integer(), server_default="1000", nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=True),
        sa.Column("use", sa.Text(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint(
            "least(cost_picousd_hour, watts, gpus) >= 0", name=op.f("ck_machine_terms_not_negative")
        ),
        sa.CheckConstraint("overhead_permille >= 1000", name=op.f("ck_machine_terms_overhead")),
        sa.CheckConstraint(
            "use in ('external', 'internal', 'research', 'recsys', 'idle')",
            name=op.f("ck_machine_terms_use"),
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_machine_terms")),
    )
    op.create_index(op.f("ix_machine_terms_pool"), "machine_terms", ["pool"])
    op.execute(
        "create trigger machine_terms_append_only before update or delete or truncate on machine_terms "
        "for each statement execute function refuse_change()"
    )


def downgrade() -> None:
    op.drop_table("machine_terms")
