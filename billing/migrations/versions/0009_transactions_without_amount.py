"""Finds the transactions that wait for a person, which each half-minutely audit counts, without reading
the whole ledger.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_ledger_transaction_no_amount",
        "ledger_transaction",
        ["pricing", "request_id"],
        postgresql_where=sa.text("pricing in ('unpriced', 'quarantined')"),
    )


def downgrade() -> None:
    op.drop_index("ix_ledger_transaction_no_amount", "ledger_transaction")
