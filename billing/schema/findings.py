"""Tables of what audits found, and of the balances that they read. It owns columns, not how they are filled.
Times are ms since the epoch.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from billing.schema.clock import NOW_MS
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

# The balance of each engine (`audit.balance`) by minute (of Redis's clock, since 1970): sums since its epoch
# began, as the last audit of the minute read them. A row holds until minute `until`, or until the next row if
# that is earlier; it never passes the hour. `run`: of the epoch, from 0 on; it grows with each restart of the
# engine. `counters`: `read` · `silent` (the engine did not answer: its last ones) · `ended`. `running`,
# `waiting`: requests that are open, and that have ended and are not in SQL, the oldest since `lag_ms`.
engine_balance = Table(
    "engine_balance",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("run", Integer, nullable=False),
    Column("counters", Text, nullable=False),
    *(
        Column(f"{what}_{kind}", BigInteger, nullable=False)
        for what in ("produced", "billed", "absorbed", "open")
        for kind in ("prompt", "generation")
    ),
    Column("running", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("lag_ms", BigInteger, nullable=False),
    CheckConstraint("counters in ('read', 'silent', 'ended')", name="counters"),
    Index(None, "minute", "instance", "epoch"),
)

# What a provider says that an account has used, by day (UTC: `2026-11-28`) and model (without the name of a
# snapshot): the last export of each day. `instances`: those of the account, with commas between; '': all of
# the provider's kind. `model` '' stands for the day itself. `cached` and `written` are parts of `prompt`;
# `written` null: it is not told.
provider_count = Table(
    "provider_count",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("instances", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("prompt", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("written", BigInteger),
    Column("output", BigInteger, nullable=False),
    Column("taken_ms", BigInteger, nullable=False, server_default=NOW_MS),
)
