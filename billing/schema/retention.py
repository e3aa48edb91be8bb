"""Tables of what retention has dropped: days of usage events, and what proves them. It owns columns, not how
they are filled. All are append-only.
"""

from sqlalchemy import BigInteger, Column, ForeignKey, Identity, Integer, LargeBinary, Table, Text

from billing.schema.clock import NOW_MS
from billing.schema.ledger import TOTAL_COLUMNS
from billing.schema.metadata import metadata

# Once for each time: what came late for a day that was dropped is dropped later. `kept`: requests at
# providers, whose cost may still get a price.
dropped_day = Table(
    "dropped_day",
    metadata,
    Column("dropped_id", BigInteger, Identity(always=True), primary_key=True),
    Column("day", Integer, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("kept", BigInteger, nullable=False),
    Column("dropped_ms", BigInteger, nullable=False, server_default=NOW_MS),
)

# Of each entry of the ledger whose event was dropped: the SHA-256 of the two parts of the event, by which its
# chain can be worked out.
dropped_event = Table(
    "dropped_event",
    metadata,
    Column("transaction_id", BigInteger, primary_key=True, autoincrement=False),
    Column("event", LargeBinary, nullable=False),
    Column("internal", LargeBinary, nullable=False),
)

# What the dropped events add up to, as in `usage_total`.
dropped_total = Table(
    "dropped_total",
    metadata,
    Column("dropped_id", BigInteger, ForeignKey(dropped_day.c.dropped_id), primary_key=True),
    Column("instance", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in TOTAL_COLUMNS),
)
