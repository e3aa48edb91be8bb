"""Tables of who may ask for what: tenants, projects, API keys, models, limits, instances; and of stored
answers. It owns columns, not how they are filled.

Nothing is deleted that a usage event may name: keys are revoked, models retired, instances get a removal
date. Times are ms since the epoch. `projection_outbox` holds what is still to be written to Redis; its rows
are written in the transaction that made the change.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata
from billing.wire import limits


def _times() -> tuple[Column[int], Column[int]]:
    return (
        Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
        Column("updated_ms", BigInteger, nullable=False, server_default=NOW_MS, onupdate=NOW_MS),
    )


tenant = Table(
    "tenant",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="active"),
    Column("on_demand", Boolean, nullable=False),
    Column("redis_down", JSONB, nullable=False),
    # Its share of what is divided fairly, against the others'.
    Column("weight", Integer, nullable=False, server_default="1"),
    # Where its days and months begin at midnight.
    Column("time_zone", Text, nullable=False, server_default="UTC"),
    # How long answers to its requests with an Idempotency-Key are stored; 0: they are not.
    Column("retain_answers_s", Integer, nullable=False, server_default="0"),
    *_times(),
    CheckConstraint("retain_answers_s between 0 and 86400", name="retain_answers"),
    CheckConstraint("weight between 1 and 1000", name="weight"),
    CheckConstraint("kind in ('external', 'internal')", name="kind"),
    CheckConstraint("status in ('active', 'suspended', 'archived')", name="status"),
)

project = Table(
    "project",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="active"),
    *_times(),
    UniqueConstraint("tenant_id", "name"),
    CheckConstraint("status in ('active', 'archived')", name="status"),
    Index(None, "created_ms", "project_id"),
)

# `hash` is the SHA-256 of the whole key in hex; the key itself is nowhere. `display` is what people may see
# of it. `models`: those that it may ask for, null for all that its tenant may.
# `first_key_id`: of which it came by rotation, the first of them; its budgets are those of that one.
api_key = Table(
    "api_key",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("display", Text, nullable=False),
    Column("name", Text),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False, index=True),
    Column("project_id", Text, ForeignKey(project.c.project_id), nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("models", ARRAY(Text)),
    Column("first_key_id", Text, ForeignKey("api_key.key_id")),
    *_times(),
    Index(None, "created_ms", "key_id"),
    Index(None, "first_key_id", postgresql_where=text("first_key_id is not null")),
)

# When a key was last used: the end of the last request that was recorded. Beside the key, because each batch
# of usage writes it.
api_key_use = Table(
    "api_key_use",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("last_used_ms", BigInteger, nullable=False),
)

# `visible`: `everyone` · `internal` · `tenants` (those in `model_audience`). An owned model is for its owner
# alone.
model = Table(
    "model",
    metadata,
    Column("name", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("visible", Text, nullable=False),
    Column("owner", Text, ForeignKey(tenant.c.tenant_id)),
    Column("routes", ARRAY(Text), nullable=False),
    Column("engine_model", Text, nullable=False),
    Column("context_tokens", Integer, nullable=False),
    Column("vocabulary_tokens", Integer),
    Column("default_max_tokens", Integer, nullable=False),
    Column("weights_version", Integer, nullable=False),
    Column("chat_template_kwargs", ARRAY(Text), nullable=False),
    Column("status", Text, nullable=False, server_default="active"),
    # Of a request for it; none: the gateway's own.
    Column("max_body_bytes", Integer),
    # Of a model with an owner: whether prompts for it may be stored, as batches do. All others take batches.
    Column("takes_batches", Boolean, nullable=False, server_default=text("false")),
    *_times(),
    CheckConstraint("max_body_bytes >= 1024", name="body_bytes"),
    CheckConstraint("visible in ('everyone', 'internal', 'tenants')", name="visible"),
    CheckConstraint("status in ('active', 'retired')", name="status"),
    CheckConstraint("least(context_tokens, vocabulary_tokens, default_max_tokens) > 0", name="positive"),
    CheckConstraint("default_max_tokens <= context_tokens", name="default_within_context"),
)

model_audience = Table(
    "model_audience",
    metadata,
    Column("model", Text, ForeignKey(model.c.name), primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), primary_key=True),
)

# A usage event names the version it was charged by, so versions are added, never changed.
model_weights = Table(
    "model_weights",
    metadata,
    Column("model", Text, ForeignKey(model.c.name), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("w_in_mu", BigInteger, nullable=False),
    Column("w_cached_mu", BigInteger, nullable=False),
    Column("w_out_mu", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("least(w_in_mu, w_cached_mu, w_out_mu) >= 0", name="not_negative"),
)

# Of a tenant (`key_id` null) or of one key of it, on one model or on `*`.
quota_limit = Table(
    "quota_limit",
    metadata,
    Column("limit_id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False),
    Column("key_id", Text, ForeignKey(api_key.c.key_id)),
    Column("model", Text, nullable=False),
    *(Column(name, BigInteger) for name in limits.NAMES),
    *_times(),
    UniqueConstraint("tenant_id", "key_id", "model", postgresql_nulls_not_distinct=True),
    CheckConstraint(f"least({', '.join(limits.NAMES)}) >= 0", name="not_negative"),
)

# A model that is an adapter (LoRA) of another one, its base: the base's engines load it from `path`.
adapter = Table(
    "adapter",
    metadata,
    Column("model", Text, ForeignKey(model.c.name), primary_key=True),
    Column("base", Text, ForeignKey(model.c.name), nullable=False, index=True),
    Column("path", Text, nullable=False),
)

# Added by hand; those of `taas worker` stand in Redis only. `engine_key` is what the engine asks of us, so it
# cannot be hashed.
instance = Table(
    "instance",
    metadata,
    Column("instance_id", Text, primary_key=True),
    Column("model", Text, ForeignKey(model.c.name), nullable=False),
    Column("pool", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("engine_key", Text),
    # Its kind, as `billing.wire.engine_kinds` has them.
    Column("engine", Text, nullable=False, server_default="vllm"),
    # Its own name for the model; none: the one in the model's row.
    Column("engine_model", Text),
    # The routes that it serves of its model's; none: all.
    Column("routes", ARRAY(Text)),
    # Its slots; none: as many as were measured.
    Column("max_concurrency", Integer),
    Column("epoch", Text, nullable=False),
    Column("abort", Boolean, nullable=False),
    # Whether it tells what each request has produced (`/taas/request_counts`).
    Column("counts", Boolean, nullable=False, server_default=text("false")),
    Column("priority", Boolean, nullable=False, server_default=text("false")),
    Column("baseline_prompt", BigInteger, nullable=False),
    Column("baseline_generation", BigInteger, nullable=False),
    Column("removed_ms", BigInteger),
    *_times(),
    CheckConstraint("least(baseline_prompt, baseline_generation) >= 0", name="not_negative"),
    CheckConstraint("max_concurrency > 0", name="concurrency"),
    # One engine under two ids would be audited twice.
    Index("uq_instance_url_in_use", "url", "model", unique=True, postgresql_where=text("removed_ms is null")),
)

# `kind` and `subject`: `tenant` id · `key` id · `model` name · `instance` id · `stop` what gateways are told
# to stop.
projection_outbox = Table(
    "projection_outbox",
    metadata,
    Column("change_id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("kind in ('tenant', 'key', 'model', 'instance', 'drain', 'stop')", name="kind"),
)

# Requests that came with an `Idempotency-Key`. `key_hash` and `fingerprint` are SHA-256 in hex, of the key
# and of all that makes the request what it is. The row is written with the request's change, `status` and
# `answer` follow; null: not known (yet). No secret is in an answer.
idempotent_request = Table(
    "idempotent_request",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("key_hash", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("status", Integer),
    Column("answer", LargeBinary),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS, index=True),
)

# One row: which database this is, and how many times it has written to Redis. Redis holds the same as its
# marker.
projection_state = Table(
    "projection_state",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("source", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("one", name="one_row"),
)
