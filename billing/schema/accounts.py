"""Tables of who may change things, and of what was changed: admin keys and the audit log. It owns columns;
that each change is logged is the migrations' (`audit_table`). Times are ms since the epoch.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Table,
    Text,
    text,
)

from billing.schema.catalogue import tenant
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata

# `hash` is the SHA-256 of the whole key in hex; the key itself is nowhere. `role`: of the platform, or, with
# `tenant_id`, within that tenant (`billing.accounts.roles`).
admin_key = Table(
    "admin_key",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("display", Text, nullable=False),
    Column("name", Text),
    Column("role", Text, nullable=False),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id)),
    Column("expires_at_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    # To the minute.
    Column("last_used_ms", BigInteger),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    Index(None, "created_ms", "key_id"),
    CheckConstraint(
        "case when tenant_id is null then role in ('operator', 'finance', 'auditor') "
        "else role in ('admin', 'member', 'billing', 'viewer') end",
        name="role",
    ),
)

# One row for each row that a transaction changed, by that transaction, append-only. `previous` is the `hash`
# of the entry before, so none can be changed, left out or put in without changing all that follow.
# `before` and `after` of a change hold the columns that differ; null: the row was not there. Without `role`
# the change was made beside the admin API, and `actor` is who had connected.
audit_log = Table(
    "audit_log",
    metadata,
    Column("entry", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text),
    Column("action", Text),
    Column("request_id", Text),
    Column("why", Text),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("tenant_id", Text),
    Column("before", JSON),
    Column("after", JSON),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index(None, "tenant_id", "entry"),
    Index(None, "at_ms", "entry"),
    Index(None, "actor", "entry"),
    Index(None, "action", "entry"),
    Index(None, "kind", "entry"),
    Index(None, "subject", "entry"),
)

# The last entry; who appends locks it.
audit_head = Table(
    "audit_head",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("entry", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
    CheckConstraint("one", name="one_row"),
)
