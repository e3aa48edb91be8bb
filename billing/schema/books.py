"""Tables of makers and books: what is owed to the makers of models, and what each month's closing recorded.
It owns columns, not how they are filled. Both are append-only.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Identity, Index, Integer, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from billing.schema.catalogue import model
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata

# From a whole hour on (since 1970): a share of what tenants pay (hundredths of a percent), or pico-dollars
# for each billed token. Of the same hour the newest version holds.
maker_terms = Table(
    "maker_terms",
    metadata,
    Column("version", BigInteger, Identity(always=True), primary_key=True),
    Column("model", Text, ForeignKey(model.c.name), nullable=False),
    Column("maker", Text, nullable=False),
    Column("from_hour", BigInteger, nullable=False),
    Column("share_basis_points", Integer),
    Column("input_picousd", BigInteger),
    Column("output_picousd", BigInteger),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("share_basis_points between 0 and 10000", name="share"),
    CheckConstraint("input_picousd >= 0 and output_picousd >= 0", name="not_negative"),
    CheckConstraint(
        "(share_basis_points is null) = (input_picousd is not null) and "
        "(input_picousd is null) = (output_picousd is null)",
        name="either",
    ),
    Index(None, "model", "from_hour"),
)

# A month, in UTC, as `2026-11`. `ledger_upto`: transactions up to this one were counted. `statements`: what
# is owed to each maker, by model.
books = Table(
    "books",
    metadata,
    Column("month", Text, primary_key=True),
    Column("until_ms", BigInteger, nullable=False),
    Column("ledger_upto", BigInteger, nullable=False),
    Column("statements", JSONB, nullable=False),
    Column("closed_ms", BigInteger, nullable=False),
)
