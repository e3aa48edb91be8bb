"""The table of what audits found. It owns columns, not how they are filled. Times are ms since the epoch."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from billing.schema.metadata import metadata

# One row from when something is seen until it is gone; `about` tells findings of one kind apart. `said`: the
# finding as it was seen last. `state`: `open` · `acknowledged` (it has an owner) · `resolved` (a person said
# why; it stays so while its figures do not change) · `closed` (it is gone, and nobody had resolved it).
finding = Table(
    "finding",
    metadata,
    Column("finding_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("about", Text, nullable=False),
    Column("said", JSONB, nullable=False),
    Column("state", Text, nullable=False, server_default="open"),
    Column("owner", Text),
    Column("reason", Text),
    Column("opened_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("gone_ms", BigInteger),
    CheckConstraint("state in ('open', 'acknowledged', 'resolved', 'closed')", name="state"),
    CheckConstraint("state <> 'closed' or gone_ms is not null", name="closed"),
    Index("uq_finding_there", "kind", "about", unique=True, postgresql_where=text("gone_ms is null")),
    Index(None, "opened_ms", "finding_id"),
)
