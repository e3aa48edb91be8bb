"""Tables of batches: files, batches, their lines, what was written of them, and which request of a line is
billed. It owns columns, not how they are filled.

No prompt and no answer is here: they are in the object store, and a line is known by where it begins there.
Times are ms since the epoch.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.schema.catalogue import tenant
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata

# `purpose`: `batch` what was uploaded, `batch_output` what a batch made; `requests` and `results` the same of
# a message batch, which are shown as no files. What a batch made are its parts (`batch_part`) of this `kind`.
# A file is `uploading` until all of it is stored, `deleting` until all of it is gone; only a `ready` one is
# there for callers.
batch_file = Table(
    "batch_file",
    metadata,
    Column("file_id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("project", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("batch_id", Text, index=True),
    Column("kind", Text),
    Column("state", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    Column("expires_ms", BigInteger, nullable=False, index=True),
    CheckConstraint("state in ('uploading', 'ready', 'deleting')", name="state"),
    Index(None, "tenant_id", "created_ms", "file_id"),
)

# `dialect`: in which it was asked for, `openai` or `anthropic`. `outcome`: the status that it will end with,
# or `deleted`. `runner`: who reads its lines now. Counts of lines; tokens as in the usage objects of answers.
batch = Table(
    "batch",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("dialect", Text, nullable=False),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("project", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("input_file", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("model", Text),
    Column("metadata", JSONB(none_as_null=True)),
    Column("output_expires_s", Integer),
    Column("status", Text, nullable=False),
    Column("outcome", Text),
    Column("runner", Text),
    Column("errors", JSONB(none_as_null=True)),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("unserved", Integer, nullable=False, server_default="0"),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    # What all lines may take together, as the limits count it.
    Column("estimate_tokens", BigInteger, nullable=False, server_default="0"),
    Column("estimate_mu", BigInteger, nullable=False, server_default="0"),
    Column("output_file", Text),
    Column("error_file", Text),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    Column("expires_ms", BigInteger, nullable=False),
    # When it came to each status: status → ms.
    Column("times", JSONB, nullable=False, server_default=text("'{}'")),
    CheckConstraint("dialect in ('openai', 'anthropic')", name="dialect"),
    CheckConstraint(
        "status in ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', "
        "'cancelling', 'cancelled')",
        name="status",
    ),
    Index(None, "tenant_id", "created_ms", "batch_id"),
    Index(
        "ix_batch_open",
        "created_ms",
        postgresql_where=text("status in ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    ),
)

# `start` and `length` in the input, in bytes. `rank`: the order in which lines are sent, those that begin
# alike together. `state`: see `batch.line_states`. `attempt`: how often it was sent.
batch_line = Table(
    "batch_line",
    metadata,
    Column("batch_id", Text, ForeignKey(batch.c.batch_id), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("rank", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("failures", SmallInteger, nullable=False, server_default="0"),
    Column("runner", Text),
    Column("not_before_ms", BigInteger, nullable=False, server_default="0"),
    Index(None, "batch_id", "state", "rank"),
)

# Objects that are written once and never changed; a file is all of its batch's and kind's, in their order.
batch_part = Table(
    "batch_part",
    metadata,
    Column("part_id", BigInteger, Identity(always=True), primary_key=True),
    Column("batch_id", Text, ForeignKey(batch.c.batch_id), nullable=False),
    Column("kind", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    CheckConstraint("kind in ('output', 'error')", name="kind"),
    Index(None, "batch_id", "kind", "part_id"),
)

# A process that serves lines. Those of one whose time has passed are served by others.
batch_runner = Table(
    "batch_runner",
    metadata,
    Column("runner", Text, primary_key=True),
    Column("until_ms", BigInteger, nullable=False),
)

# The one request of a line that its tenant pays for. Whatever other request of that line there was, its
# tokens are absorbed. `line`: as in the usage event.
line_bill = Table(
    "line_bill",
    metadata,
    Column("line", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS, index=True),
)
