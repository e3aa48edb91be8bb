"""Chains of hashes over the entries of the ledger. Entries that are there already are chained by the billing
process, in their order; so are those that an earlier version records beside this one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage_chain",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("chained_ms", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("parts", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "position", name=op.f("pk_usage_chain")),
        sa.UniqueConstraint("transaction_id", name=op.f("uq_usage_chain_transaction_id")),
    )
    op.create_table(
        "usage_chain_head",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("chained_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_usage_chain_head")),
    )
    op.create_table(
        "usage_unchained",
        sa.Column("transaction_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_usage_unchained")),
    )
    op.execute(
        "create trigger usage_chain_append_only before update or delete or truncate on usage_chain "
        "for each statement execute function refuse_change()"
    )
    # Nothing is recorded from here to the commit, so that no entry is left out.
    op.execute("lock table ledger_transaction in share row exclusive mode")
    op.add_column(
        "ledger_transaction", sa.Column("chained", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.execute("insert into usage_unchained select transaction_id from ledger_transaction")
    op.execute("""
        create function note_unchained() returns trigger language plpgsql as $$
        begin
          insert into usage_unchained select transaction_id from added where not chained;
          return null;
        end $$
    """)
    op.execute(
        "create trigger ledger_transaction_unchained after insert on ledger_transaction "
        "referencing new table as added for each statement execute function note_unchained()"
    )


def downgrade() -> None:
    """The chains are lost."""
    op.execute("drop trigger ledger_transaction_unchained on ledger_transaction")
    op.execute("drop function note_unchained()")
    op.drop_column("ledger_transaction", "chained")
    for table in ("usage_unchained", "usage_chain_head", "usage_chain"):
        op.drop_table(table)
