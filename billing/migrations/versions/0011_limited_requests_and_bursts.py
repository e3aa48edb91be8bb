"""A contract's minute tells which limit of its tenant refused requests that the contract had room for; a
contract says how long its burst is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LIMITS = ("requests", "concurrency", "cancels")


def upgrade() -> None:
    for limit in LIMITS:
        column = sa.Column(f"limited_{limit}", sa.BigInteger(), server_default="0", nullable=False)
        op.add_column("contract_minute", column)
    op.add_column("contract", sa.Column("burst_ms", sa.Integer(), server_default="1000", nullable=False))
    op.create_check_constraint(op.f("ck_contract_burst"), "contract", "burst_ms >= 1000")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_contract_burst"), "contract")
    op.drop_column("contract", "burst_ms")
    for limit in LIMITS:
        op.drop_column("contract_minute", f"limited_{limit}")
