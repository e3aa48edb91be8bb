"""A contract's minute tells what a reclaim cut from what was missing because machines were not ready;
together they are its shortfall.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("contract_minute", "shortfall_mu", new_column_name="cut_mu")
    op.add_column(
        "contract_minute", sa.Column("missing_mu", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.alter_column("contract_minute", "missing_mu", server_default=None)
    op.add_column(
        "contract_minute",
        sa.Column(
            "shortfall_mu",
            sa.BigInteger(),
            sa.Computed("cut_mu + missing_mu", persisted=True),
            nullable=False,
        ),
    )


def downgrade() -> None:
    op.drop_column("contract_minute", "shortfall_mu")
    op.drop_column("contract_minute", "missing_mu")
    op.alter_column("contract_minute", "cut_mu", new_column_name="shortfall_mu")
