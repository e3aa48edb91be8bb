"""Tables of sinks: where recorded requests are delivered, and how far. It owns columns, not how they are
filled. Times are ms since the epoch.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    text,
)

from billing.schema.catalogue import tenant
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata

# `tenant_id` null: of all tenants. `customer`: what the receiver calls the tenant; `meter`: its name of what
# is counted. `bearer` opens the receiver, `secret` signs what is sent: neither can be a hash.
sink = Table(
    "sink",
    metadata,
    Column("sink_id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id)),
    Column("url", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("customer", Text),
    Column("meter", Text),
    Column("bearer", Text),
    Column("secret", Text, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("format in ('cloudevents', 'openmeter', 'stripe', 'lago')", name="format"),
)

# Up to where a chain was taken; without a row, nothing of it was. After a failure it is tried again at
# `next_ms`. `unsure_upto`: a receiver that forgets ids may have taken what is up to there, since `unsure_ms`.
sink_position = Table(
    "sink_position",
    metadata,
    Column("sink_id", Text, ForeignKey(sink.c.sink_id, ondelete="CASCADE"), primary_key=True),
    Column("chain", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("tried_ms", BigInteger),
    Column("next_ms", BigInteger),
    Column("failure", Text),
    Column("unsure_ms", BigInteger),
    Column("unsure_upto", BigInteger),
)

# Requests that were not sent: the receiver takes none so old (`too_old`), or it may have them already and
# would count them again (`unsure`).
sink_skipped = Table(
    "sink_skipped",
    metadata,
    Column("sink_id", Text, ForeignKey(sink.c.sink_id, ondelete="CASCADE"), primary_key=True),
    Column("chain", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", Text, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("skipped_ms", BigInteger, nullable=False),
    Column("why", Text, nullable=False, server_default="too_old"),
    CheckConstraint("why in ('too_old', 'unsure')", name="why"),
    Index(None, "sink_id", "skipped_ms"),
)
