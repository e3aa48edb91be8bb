"""What providers charge: cost prices, the tokens that they put into their caches, and their own usage
objects.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_WRITTEN = ("produced_written", "billed_written")
_APPEND_ONLY = ("cost_price", "cost_price_withdrawal")


def upgrade() -> None:
    for name in _WRITTEN:
        op.add_column(
            "usage_event", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    op.add_column("usage_event", sa.Column("provider", postgresql.JSONB(none_as_null=True), nullable=True))
    op.drop_constraint(op.f("ck_usage_event_cached_within_prompt"), "usage_event", type_="check")
    op.create_check_constraint(
        op.f("ck_usage_event_cached_within_prompt"),
        "usage_event",
        "billed_cached + billed_written <= billed_prompt",
    )
    op.create_check_constraint(
        op.f("ck_usage_event_written_not_negative"),
        "usage_event",
        "least(produced_written, billed_written) >= 0",
    )
    op.add_column("price", sa.Column("cache_write_picousd", sa.BigInteger(), nullable=True))
    op.create_check_constraint(op.f("ck_price_cache_write_not_negative"), "price", "cache_write_picousd >= 0")
    _create_cost_prices()
    for table in _APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def _create_cost_prices() -> None:
    op.create_table(
        "cost_price",
        sa.Column("price_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("valid_from_ms", sa.BigInteger(), nullable=False),
        sa.Column("input_picousd", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_picousd", sa.BigInteger(), nullable=False),
        sa.Column("output_picousd", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_picousd", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "least(input_picousd, cached_input_picousd, output_picousd) >= 0",
            name=op.f("ck_cost_price_not_negative"),
        ),
        sa.CheckConstraint("cache_write_picousd >= 0", name=op.f("ck_cost_price_cache_write_not_negative")),
        sa.PrimaryKeyConstraint("price_id", name=op.f("pk_cost_price")),
    )
    op.create_index("ix_cost_price_model_valid_from_ms", "cost_price", ["model", "valid_from_ms"])
    op.create_table(
        "cost_price_withdrawal",
        sa.Column("price_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("withdrawn_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.ForeignKeyConstraint(
            ["price_id"],
            ["cost_price.price_id"],
            name=op.f("fk_cost_price_withdrawal_price_id_cost_price"),
        ),
        sa.PrimaryKeyConstraint("price_id", name=op.f("pk_cost_price_withdrawal")),
    )


def downgrade() -> None:
    """What was billed for writing into caches stays billed; its own price is lost."""
    op.drop_table("cost_price_withdrawal")
    op.drop_table("cost_price")
    op.drop_constraint(op.f("ck_price_cache_write_not_negative"), "price", type_="check")
    op.drop_column("price", "cache_write_picousd")
    op.drop_constraint(op.f("ck_usage_event_written_not_negative"), "usage_event", type_="check")
    op.drop_constraint(op.f("ck_usage_event_cached_within_prompt"), "usage_event", type_="check")
    op.create_check_constraint(
        op.f("ck_usage_event_cached_within_prompt"), "usage_event", "billed_cached <= billed_prompt"
    )
    for name in ("provider", *_WRITTEN):
        op.drop_column("usage_event", name)
