"""Who may ask for what: tenants, projects, API keys, models, limits, instances, and what Redis has to be
told of them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_TABLES = (
    "projection_state", "projection_outbox", "instance", "quota_limit", "model_weights", "model_audience",
    "model", "api_key", "project", "tenant",
)  # fmt: skip


def upgrade() -> None:
    """In the order in which they refer to each other."""
    _create_tenants()
    _create_models()
    _create_limits()
    _create_instances()
    _create_projection()


def downgrade() -> None:
    """Everything that refers goes first."""
    for table in _TABLES:
        op.drop_table(table)


def _times() -> tuple[sa.Column[int], sa.Column[int]]:
    return (
        sa.Column("created_ms", sa.BigInteger, nullable=False, server_default=_NOW_MS),
        sa.Column("updated_ms", sa.BigInteger, nullable=False, server_default=_NOW_MS),
    )


def _create_tenants() -> None:
    op.create_table(
        "tenant",
        sa.Column("tenant_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="active"),
        sa.Column("on_demand", sa.Boolean, nullable=False),
        sa.Column("redis_down", postgresql.JSONB, nullable=False),
        *_times(),
        sa.CheckConstraint("kind in ('external', 'internal')", name="kind"),
        sa.CheckConstraint("status in ('active', 'suspended')", name="status"),
    )
    op.create_table(
        "project",
        sa.Column("project_id", sa.Text, primary_key=True),
        sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenant.tenant_id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        *_times(),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    op.create_table(
        "api_key",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sa.Column("display", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenant.tenant_id"), nullable=False, index=True),
        sa.Column("project_id", sa.Text, sa.ForeignKey("project.project_id"), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        *_times(),
    )


def _create_models() -> None:
    op.create_table(
        "model",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("cell", sa.Text, nullable=False),
        sa.Column("visible", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, sa.ForeignKey("tenant.tenant_id")),
        sa.Column("routes", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("engine_model", sa.Text, nullable=False),
        sa.Column("context_tokens", sa.Integer, nullable=False),
        sa.Column("vocabulary_tokens", sa.Integer),
        sa.Column("default_max_tokens", sa.Integer, nullable=False),
        sa.Column("weights_version", sa.Integer, nullable=False),
        sa.Column("chat_template_kwargs", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="active"),
        *_times(),
        sa.CheckConstraint("visible in ('everyone', 'internal', 'tenants')", name="visible"),
        sa.CheckConstraint("status in ('active', 'retired')", name="status"),
        sa.CheckConstraint(
            "least(context_tokens, vocabulary_tokens, default_max_tokens) > 0", name="positive"
        ),
        sa.CheckConstraint("default_max_tokens <= context_tokens", name="default_within_context"),
    )
    op.create_table(
        "model_audience",
        sa.Column("model", sa.Text, sa.ForeignKey("model.name"), primary_key=True),
        sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenant.tenant_id"), primary_key=True),
    )
    op.create_table(
        "model_weights",
        sa.Column("model", sa.Text, sa.ForeignKey("model.name"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("w_in_mu", sa.BigInteger, nullable=False),
        sa.Column("w_cached_mu", sa.BigInteger, nullable=False),
        sa.Column("w_out_mu", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False, server_default=_NOW_MS),
        sa.CheckConstraint("least(w_in_mu, w_cached_mu, w_out_mu) >= 0", name="not_negative"),
    )


def _create_limits() -> None:
    op.create_table(
        "quota_limit",
        sa.Column("limit_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenant.tenant_id"), nullable=False),
        sa.Column("key_id", sa.Text, sa.ForeignKey("api_key.key_id")),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("units_per_minute", sa.BigInteger),
        sa.Column("concurrency", sa.BigInteger),
        *_times(),
        sa.UniqueConstraint("tenant_id", "key_id", "model", postgresql_nulls_not_distinct=True),
        sa.CheckConstraint(
            "least(requests_per_minute, units_per_minute, concurrency) >= 0", name="not_negative"
        ),
    )


def _create_instances() -> None:
    op.create_table(
        "instance",
        sa.Column("instance_id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, sa.ForeignKey("model.name"), nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("cell", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("engine_key", sa.Text),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("abort", sa.Boolean, nullable=False),
        sa.Column("baseline_prompt", sa.BigInteger, nullable=False),
        sa.Column("baseline_generation", sa.BigInteger, nullable=False),
        sa.Column("removed_ms", sa.BigInteger),
        *_times(),
        sa.CheckConstraint("least(baseline_prompt, baseline_generation) >= 0", name="not_negative"),
    )
    op.create_index(
        "uq_instance_url_in_use",
        "instance",
        ["url", "model"],
        unique=True,
        postgresql_where=sa.text("removed_ms is null"),
    )


def _create_projection() -> None:
    op.create_table(
        "projection_outbox",
        sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False, server_default=_NOW_MS),
        sa.CheckConstraint("kind in ('tenant', 'key', 'model', 'instance', 'stop')", name="kind"),
    )
    op.create_table(
        "projection_state",
        sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.text("true")),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("one", name="one_row"),
    )
    op.execute("insert into projection_state (source, version) values (gen_random_uuid()::text, 0)")
