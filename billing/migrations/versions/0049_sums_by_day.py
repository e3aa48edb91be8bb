"""Usage by day: the sums by hour of days that are over, added up, so that a month is read from its days. A
trigger of `usage_hour` says that a day has to be added up anew, whichever version of billing records.
"""

import sqlalchemy as sa
from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None

_NAMES = (
    "tenant", "day", "project", "key_id", "model", "class", "contract", "instance", "pricing", "price_id",
)  # fmt: skip
_COUNTS = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output", "units_mu",
)  # fmt: skip
_TYPES = {"day": sa.Integer, "price_id": sa.BigInteger}


def upgrade() -> None:
    op.create_table(
        "usage_day",
        *(
            sa.Column(name, _TYPES.get(name, sa.Text)(), autoincrement=False, nullable=False)
            for name in _NAMES
        ),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.PrimaryKeyConstraint(*_NAMES, name=op.f("pk_usage_day")),
    )
    op.create_index(op.f("ix_usage_day_day"), "usage_day", ["day"])
    op.create_table(
        "summed_day",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("after_xid", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_summed_day")),
    )
    op.execute("""
        create function unsum_days() returns trigger language plpgsql as $$
        begin
          delete from summed_day where day in (
            select day from summed_day where day = any (array(select distinct hour / 24 from added))
            order by day for update
          );
          return null;
        end $$
    """)
    for event in ("insert", "update"):
        op.execute(
            f"create trigger usage_hour_{event}_day after {event} on usage_hour "
            "referencing new table as added for each statement execute function unsum_days()"
        )


def downgrade() -> None:
    op.execute("drop function unsum_days() cascade")
    op.drop_table("summed_day")
    op.drop_table("usage_day")
