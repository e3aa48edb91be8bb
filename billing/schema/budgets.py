"""Tables of budgets: what may be spent in a period, and what was spent. It owns columns, not how they are
filled. Amounts are whole pico-dollars, times ms since the epoch.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
)

from billing.schema.catalogue import api_key, project, tenant
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata

# Of a tenant, of one of its projects, or of one of its keys. [`from_ms`, `until_ms`) is the current period,
# by the tenant's time zone; `until_ms` is null of `total`, which never begins again. `raised_picousd` is
# added until `raised_until_ms`. Of a `window`: so many days each, counted from the date `window_starts`. Of
# `prepaid`: what the tenant's credits can pay of usage that is on no invoice yet; `until_ms` is when a credit
# expires or the period ends.
budget = Table(
    "budget",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("project_id", Text, ForeignKey(project.c.project_id)),
    Column("key_id", Text, ForeignKey(api_key.c.key_id)),
    Column("per", Text, nullable=False),
    Column("window_days", Integer),
    Column("window_starts", Text),
    Column("amount_picousd", Numeric(38, 0), nullable=False),
    Column("raised_picousd", Numeric(38, 0)),
    Column("raised_until_ms", BigInteger),
    Column("from_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    Column("updated_ms", BigInteger, nullable=False, server_default=NOW_MS, onupdate=NOW_MS),
    UniqueConstraint("tenant_id", "project_id", "key_id", "per", postgresql_nulls_not_distinct=True),
    CheckConstraint("per in ('day', 'month', 'window', 'total', 'prepaid')", name="per"),
    CheckConstraint("per = 'prepaid' or (per = 'total') = (until_ms is null)", name="ends"),
    CheckConstraint(
        "(per = 'window') = (window_days is not null) and (per = 'window') = (window_starts is not null)",
        name="window",
    ),
    CheckConstraint("project_id is null or key_id is null", name="whose"),
    CheckConstraint("amount_picousd >= 0", name="not_negative"),
    CheckConstraint(
        "(raised_picousd is null) = (raised_until_ms is null) and raised_picousd > 0", name="raised"
    ),
)

# What requests that ended in a period cost, kept in the SQL transactions that record them. `first_ms`: when
# the first of them that cost something began, or the hour in which it ended.
budget_spent = Table(
    "budget_spent",
    metadata,
    Column("budget_id", Text, ForeignKey(budget.c.budget_id, ondelete="CASCADE"), primary_key=True),
    Column("from_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("amount_picousd", Numeric(38, 0), nullable=False),
    Column("first_ms", BigInteger),
)

# Who is told when so much of a budget is spent. `sent_from_ms`: the period for which it was. After a failure
# it is tried again at `next_ms`.
budget_alert = Table(
    "budget_alert",
    metadata,
    Column("budget_id", Text, ForeignKey(budget.c.budget_id, ondelete="CASCADE"), primary_key=True),
    Column("percent", Integer, primary_key=True, autoincrement=False),
    Column("url", Text, nullable=False),
    # Signs what is sent, so it cannot be a hash.
    Column("secret", Text, nullable=False),
    Column("sent_from_ms", BigInteger),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_ms", BigInteger),
    Column("failure", Text),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("percent between 1 and 100", name="percent"),
)
