"""Batches: files, batches, lines, parts; which request of a line is billed, and the line of a usage event."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_OPEN = sa.text("status in ('validating', 'in_progress', 'finalizing', 'cancelling')")


def _count(name: str, kind: type = sa.BigInteger) -> sa.Column[int]:
    return sa.Column(name, kind(), nullable=False, server_default="0")


def upgrade() -> None:
    op.add_column("usage_event", sa.Column("line", sa.Text(), nullable=True))
    op.add_column(
        "model", sa.Column("takes_batches", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    )
    op.create_table(
        "line_bill",
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.PrimaryKeyConstraint("line", name=op.f("pk_line_bill")),
    )
    op.create_index(op.f("ix_line_bill_created_ms"), "line_bill", ["created_ms"])
    op.create_table(
        "batch_file",
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("project", "key_id", "purpose", "filename")
        ),
        _count("bytes"),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state in ('uploading', 'ready', 'deleting')", name=op.f("ck_batch_file_state")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_batch_file_tenant_id_tenant")
        ),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_batch_file")),
    )
    op.create_index(op.f("ix_batch_file_batch_id"), "batch_file", ["batch_id"])
    op.create_index(op.f("ix_batch_file_expires_ms"), "batch_file", ["expires_ms"])
    op.create_index(
        op.f("ix_batch_file_tenant_id_created_ms_file_id"),
        "batch_file",
        ["tenant_id", "created_ms", "file_id"],
    )
    _batch()
    _lines()


def _batch() -> None:
    op.create_table(
        "batch",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("batch_id", "dialect", "tenant_id")),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("project", "key_id", "input_file", "route")
        ),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("output_expires_s", sa.Integer(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("runner", sa.Text(), nullable=True),
        sa.Column("errors", postgresql.JSONB(none_as_null=True), nullable=True),
        *(_count(name, sa.Integer) for name in ("total", "completed", "failed", "unserved")),
        *(_count(name) for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")),
        *(_count(name) for name in ("estimate_tokens", "estimate_mu")),
        sa.Column("output_file", sa.Text(), nullable=True),
        sa.Column("error_file", sa.Text(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("times", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.CheckConstraint("dialect in ('openai', 'anthropic')", name=op.f("ck_batch_dialect")),
        sa.CheckConstraint(
            "status in ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', "
            "'cancelling', 'cancelled')",
            name=op.f("ck_batch_status"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_batch_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batch")),
    )
    op.create_index(
        op.f("ix_batch_tenant_id_created_ms_batch_id"), "batch", ["tenant_id", "created_ms", "batch_id"]
    )
    op.create_index("ix_batch_open", "batch", ["created_ms"], postgresql_where=_OPEN)


def _lines() -> None:
    op.create_table(
        "batch_line",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        _count("state", sa.SmallInteger),
        _count("attempt", sa.Integer),
        _count("failures", sa.SmallInteger),
        sa.Column("runner", sa.Text(), nullable=True),
        _count("not_before_ms"),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.batch_id"], name=op.f("fk_batch_line_batch_id_batch")),
        sa.PrimaryKeyConstraint("batch_id", "line", name=op.f("pk_batch_line")),
    )
    op.create_index(op.f("ix_batch_line_batch_id_state_rank"), "batch_line", ["batch_id", "state", "rank"])
    op.create_table(
        "batch_part",
        sa.Column("part_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("batch_id", "kind", "object")),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind in ('output', 'error')", name=op.f("ck_batch_part_kind")),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.batch_id"], name=op.f("fk_batch_part_batch_id_batch")),
        sa.PrimaryKeyConstraint("part_id", name=op.f("pk_batch_part")),
    )
    op.create_index(
        op.f("ix_batch_part_batch_id_kind_part_id"), "batch_part", ["batch_id", "kind", "part_id"]
    )
    op.create_table(
        "batch_runner",
        sa.Column("runner", sa.Text(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("runner", name=op.f("pk_batch_runner")),
    )


def downgrade() -> None:
    for name in ("batch_runner", "batch_part", "batch_line", "batch", "batch_file", "line_bill"):
        op.drop_table(name)
    op.drop_column("model", "takes_batches")
    op.drop_column("usage_event", "line")
