"""What was used and what it costs: events, prices, the ledger, engine counters, and the triggers that keep
them true.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_APPEND_ONLY = (
    "usage_event", "price", "ledger_transaction", "ledger_posting", "usage_rejected", "usage_conflict",
    "reconciled_request",
)  # fmt: skip

_REFUSE_CHANGE = """
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'table % is append-only', tg_table_name using errcode = 'restrict_violation';
end $$
"""
# Checked at commit, so that the postings of a transaction may be written one by one.
_BALANCED = """
create function ledger_balanced() returns trigger language plpgsql as $$
declare
    total numeric;
begin
    select sum(amount_picousd) into total from ledger_posting where transaction_id = new.transaction_id;
    if total <> 0 then
        raise exception 'postings of ledger transaction % sum to %', new.transaction_id, total
            using errcode = 'check_violation';
    end if;
    return null;
end $$
"""


def upgrade() -> None:
    """Tables first, then the triggers."""
    _create_counters()
    _create_usage()
    _create_usage_trouble()
    _create_ledger()
    op.execute(_BALANCED)
    op.execute(
        "create constraint trigger ledger_posting_balanced after insert on ledger_posting deferrable "
        "initially deferred "
        "for each row execute function ledger_balanced()"
    )
    op.execute(_REFUSE_CHANGE)
    for table in _APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def _create_counters() -> None:
    op.create_table(
        "engine_counter",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("started", sa.Text(), nullable=True),
        sa.Column("baseline_prompt", sa.BigInteger(), nullable=False),
        sa.Column("baseline_generation", sa.BigInteger(), nullable=False),
        sa.Column("last_prompt", sa.BigInteger(), nullable=False),
        sa.Column("last_generation", sa.BigInteger(), nullable=False),
        sa.Column("polled_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("exact", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint(
            "state in ('open', 'closed', 'no_counters')", name=op.f("ck_engine_counter_state")
        ),
        sa.PrimaryKeyConstraint("instance", "epoch", "run", name=op.f("pk_engine_counter")),
    )
    op.create_table(
        "usage_total",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("billed_prompt", sa.BigInteger(), nullable=False),
        sa.Column("billed_output", sa.BigInteger(), nullable=False),
        sa.Column("absorbed_prompt", sa.BigInteger(), nullable=False),
        sa.Column("absorbed_output", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "epoch", name=op.f("pk_usage_total")),
    )


def _create_usage() -> None:
    op.create_table(
        "usage_event",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), server_default="request", nullable=False),
        sa.Column("version", sa.SmallInteger(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("class", sa.Text(), nullable=False),
        sa.Column("contract", sa.Text(), nullable=True),
        sa.Column("weights", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_token_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
        sa.Column("waited_ms", sa.BigInteger(), nullable=False),
        sa.Column("ending", sa.Text(), nullable=False),
        sa.Column("usage_source", sa.Text(), nullable=False),
        sa.Column("anomaly", sa.Text(), nullable=True),
        sa.Column("produced_prompt", sa.BigInteger(), nullable=False),
        sa.Column("produced_cached", sa.BigInteger(), nullable=False),
        sa.Column("produced_output", sa.BigInteger(), nullable=False),
        sa.Column("delivered_output", sa.BigInteger(), nullable=False),
        sa.Column("billed_prompt", sa.BigInteger(), nullable=False),
        sa.Column("billed_cached", sa.BigInteger(), nullable=False),
        sa.Column("billed_output", sa.BigInteger(), nullable=False),
        sa.Column("absorbed_prompt", sa.BigInteger(), nullable=False),
        sa.Column("absorbed_output", sa.BigInteger(), nullable=False),
        sa.Column("absorbed_reasons", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("units_mu", sa.BigInteger(), nullable=False),
        sa.Column("http_status", sa.Integer(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("orphan", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("recorded_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint(
            "kind = 'reconciliation' or (tenant is not null and project is not null and key_id is not null)",
            name=op.f("ck_usage_event_payer"),
        ),
        sa.CheckConstraint("kind in ('request', 'reconciliation')", name=op.f("ck_usage_event_kind")),
        sa.CheckConstraint(
            "billed_cached <= billed_prompt", name=op.f("ck_usage_event_cached_within_prompt")
        ),
        sa.CheckConstraint(
            "least(produced_cached, delivered_output, billed_prompt, billed_cached, billed_output, "
            "absorbed_prompt, absorbed_output) >= 0",
            name=op.f("ck_usage_event_not_negative"),
        ),
        sa.CheckConstraint(
            "produced_output = billed_output + absorbed_output", name=op.f("ck_usage_event_output_conserved")
        ),
        sa.CheckConstraint(
            "produced_prompt = billed_prompt + absorbed_prompt", name=op.f("ck_usage_event_prompt_conserved")
        ),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_usage_event")),
    )
    op.create_index(op.f("ix_usage_event_instance_epoch"), "usage_event", ["instance", "epoch"], unique=False)
    op.create_index(
        op.f("ix_usage_event_tenant_ended_ms"), "usage_event", ["tenant", "ended_ms"], unique=False
    )
    op.create_index(
        "ix_usage_event_gateway_died",
        "usage_event",
        ["instance", "epoch"],
        postgresql_where=sa.text("ending = 'gateway_died' and kind = 'request'"),
    )


def _create_usage_trouble() -> None:
    op.create_table(
        "usage_rejected",
        sa.Column("rejected_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("entry_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.PrimaryKeyConstraint("rejected_id", name=op.f("pk_usage_rejected")),
        sa.UniqueConstraint(
            "cell", "entry_id", "digest", name=op.f("uq_usage_rejected_cell_entry_id_digest")
        ),
    )
    op.create_table(
        "reconciled_request",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("reconciliation", sa.Text(), nullable=True),
        sa.Column("recorded_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.ForeignKeyConstraint(
            ["reconciliation"],
            ["usage_event.request_id"],
            name=op.f("fk_reconciled_request_reconciliation_usage_event"),
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["usage_event.request_id"],
            name=op.f("fk_reconciled_request_request_id_usage_event"),
        ),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_reconciled_request")),
    )
    op.create_table(
        "usage_conflict",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"], ["usage_event.request_id"], name=op.f("fk_usage_conflict_request_id_usage_event")
        ),
        sa.PrimaryKeyConstraint("request_id", "digest", name=op.f("pk_usage_conflict")),
    )


def _create_ledger() -> None:
    op.create_table(
        "price",
        sa.Column("price_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("valid_from_ms", sa.BigInteger(), nullable=False),
        sa.Column("input_picousd", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_picousd", sa.BigInteger(), nullable=False),
        sa.Column("output_picousd", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint(
            "least(input_picousd, cached_input_picousd, output_picousd) >= 0",
            name=op.f("ck_price_not_negative"),
        ),
        sa.PrimaryKeyConstraint("price_id", name=op.f("pk_price")),
        sa.UniqueConstraint("model", "valid_from_ms", name=op.f("uq_price_model_valid_from_ms")),
    )
    op.create_table(
        "ledger_transaction",
        sa.Column("transaction_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("pricing", sa.Text(), nullable=False),
        sa.Column("price_id", sa.BigInteger(), nullable=True),
        sa.Column("recorded_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint(
            "(pricing = 'priced') = (price_id is not null)", name=op.f("ck_ledger_transaction_priced_by")
        ),
        sa.CheckConstraint(
            "pricing in ('priced', 'unpriced', 'quarantined', 'nothing_billed')",
            name=op.f("ck_ledger_transaction_pricing"),
        ),
        sa.ForeignKeyConstraint(
            ["price_id"], ["price.price_id"], name=op.f("fk_ledger_transaction_price_id_price")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["usage_event.request_id"],
            name=op.f("fk_ledger_transaction_request_id_usage_event"),
        ),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_ledger_transaction")),
        sa.UniqueConstraint("request_id", name=op.f("uq_ledger_transaction_request_id")),
    )
    op.create_table(
        "ledger_posting",
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("amount_picousd", sa.Numeric(precision=38, scale=0), nullable=False),
        sa.CheckConstraint("account in ('receivable', 'revenue')", name=op.f("ck_ledger_posting_account")),
        sa.CheckConstraint("amount_picousd <> 0", name=op.f("ck_ledger_posting_not_zero")),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transaction.transaction_id"],
            name=op.f("fk_ledger_posting_transaction_id_ledger_transaction"),
        ),
        sa.PrimaryKeyConstraint("transaction_id", "line", name=op.f("pk_ledger_posting")),
    )


def downgrade() -> None:
    """For development only: it drops the ledger."""
    for table in (
        "ledger_posting",
        "usage_conflict",
        "reconciled_request",
        "ledger_transaction",
        "usage_rejected",
        "usage_event",
        "price",
    ):
        op.drop_table(table)
    op.execute("drop function ledger_balanced")
    op.execute("drop function refuse_change")
