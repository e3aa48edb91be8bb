"""Tables of the proof: chains of hashes over the ledger's entries. It owns columns, not how they are filled.

Chains and their links are append-only: triggers of the migration refuse changes.
"""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Table, Text, UniqueConstraint

from billing.schema.metadata import metadata

# A link for each entry of the ledger. `chain`: the tenant of its event; '' of what is on no tenant's bill.
# `parts`: the first bytes of the digests of its parts, to say which of them differs. No foreign keys: a link
# names what it is of also after that is gone.
usage_chain = Table(
    "usage_chain",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("transaction_id", BigInteger, nullable=False),
    Column("request_id", Text),
    Column("chained_ms", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("parts", LargeBinary, nullable=False),
    UniqueConstraint("transaction_id"),
)

# The last link of each chain; whoever adds links holds its row.
usage_chain_head = Table(
    "usage_chain_head",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("chained_ms", BigInteger, nullable=False),
)

# The last link of each chain on each day (UTC: `2026-11-28`) that has links, signed with the key of this
# id; both null until it is signed, and unchanged from then on.
usage_checkpoint = Table(
    "usage_checkpoint",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("key_id", Text),
    Column("signature", Text),
    UniqueConstraint("chain", "position"),
)
Index(
    "ix_usage_checkpoint_unsigned",
    usage_checkpoint.c.chain,
    postgresql_where=usage_checkpoint.c.signature.is_(None),
)

# Entries that are in no chain yet: from before there were chains, written by an earlier version beside this
# one, or of no tenant. A trigger of `ledger_transaction` adds to it.
usage_unchained = Table(
    "usage_unchained",
    metadata,
    Column("transaction_id", BigInteger, primary_key=True, autoincrement=False),
)
