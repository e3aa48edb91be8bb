"""Answers of requests that carry an `Idempotency-Key` are kept; lists are read in their order."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_ORDERS = {
    "project": ["created_ms", "project_id"],
    "api_key": ["created_ms", "key_id"],
    "contract": ["starts_ms", "contract_id"],
}


def upgrade() -> None:
    op.create_table(
        "idempotent_request",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.PrimaryKeyConstraint("caller", "key_hash", name=op.f("pk_idempotent_request")),
    )
    op.create_index("ix_idempotent_request_created_ms", "idempotent_request", ["created_ms"])
    for table, columns in _ORDERS.items():
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)


def downgrade() -> None:
    for table, columns in _ORDERS.items():
        op.drop_index(f"ix_{table}_{'_'.join(columns)}", table)
    op.drop_table("idempotent_request")
