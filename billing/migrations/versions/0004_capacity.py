"""Capacity: what pools can do, what of it is sold by contract, what their machines are for, and the
evidence of it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")
_APPEND_ONLY = ("calibration", "contract_history", "reclaim_history", "contract_shortfall")


def upgrade() -> None:
    op.create_table(
        "pool",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), server_default="0", nullable=False),
        sa.Column("headroom_permille", sa.Integer(), server_default=sa.text("100"), nullable=False),
        sa.Column("set_aside_mu_s", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("headroom_permille between 0 and 999", name=op.f("ck_pool_headroom")),
        sa.CheckConstraint("instances >= 0 and set_aside_mu_s >= 0", name=op.f("ck_pool_not_negative")),
        sa.PrimaryKeyConstraint("pool", name=op.f("pk_pool")),
    )
    op.create_table(
        "reclaim",
        sa.Column("reclaim_id", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("use", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("breaks", sa.Boolean(), nullable=False),
        sa.Column("chosen", postgresql.JSONB(), nullable=False),
        sa.Column("by_ms", sa.BigInteger(), nullable=False),
        sa.Column("released_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint(
            "state in ('planned', 'draining', 'done', 'released', 'cancelled')", name=op.f("ck_reclaim_state")
        ),
        sa.CheckConstraint(
            "use in ('external', 'internal', 'research', 'recsys', 'idle')", name=op.f("ck_reclaim_use")
        ),
        sa.CheckConstraint("instances > 0", name=op.f("ck_reclaim_instances")),
        sa.PrimaryKeyConstraint("reclaim_id", name=op.f("pk_reclaim")),
    )
    op.create_index(op.f("ix_reclaim_pool"), "reclaim", ["pool"], unique=False)
    op.create_table(
        "contract",
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("starts_ms", sa.BigInteger(), nullable=False),
        sa.Column("ends_ms", sa.BigInteger(), nullable=False),
        sa.Column("minimum_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("tenant_notice_days", sa.Integer(), nullable=False),
        sa.Column("operator_notice_days", sa.Integer(), nullable=False),
        sa.Column("notice_by", sa.Text(), nullable=True),
        sa.Column("notice_given_ms", sa.BigInteger(), nullable=True),
        sa.Column("effective_end_ms", sa.BigInteger(), nullable=False),
        sa.Column("overflow", sa.Text(), nullable=False),
        sa.Column("spill_mu_s", sa.BigInteger(), nullable=True),
        sa.Column("headroom_permille", sa.Integer(), nullable=False),
        sa.Column("price_reference", sa.Text(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("notice_by in ('tenant', 'operator')", name=op.f("ck_contract_notice_by")),
        sa.CheckConstraint("overflow in ('reject', 'spill', 'queue')", name=op.f("ck_contract_overflow")),
        sa.CheckConstraint(
            "state in ('draft', 'signed', 'active', 'notice_given', 'ended')", name=op.f("ck_contract_state")
        ),
        sa.CheckConstraint("headroom_permille between 0 and 999", name=op.f("ck_contract_headroom")),
        sa.CheckConstraint(
            "least(tenant_notice_days, operator_notice_days) >= 0", name=op.f("ck_contract_notice")
        ),
        sa.CheckConstraint("spill_mu_s >= 0", name=op.f("ck_contract_spill")),
        sa.CheckConstraint(
            "starts_ms < ends_ms and effective_end_ms <= ends_ms", name=op.f("ck_contract_term")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_contract_tenant_id_tenant")
        ),
        sa.PrimaryKeyConstraint("contract_id", name=op.f("pk_contract")),
    )
    op.create_index(op.f("ix_contract_pool"), "contract", ["pool"], unique=False)
    op.create_index(op.f("ix_contract_tenant_id"), "contract", ["tenant_id"], unique=False)
    op.create_table(
        "reclaim_history",
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("reclaim_id", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["reclaim_id"], ["reclaim.reclaim_id"], name=op.f("fk_reclaim_history_reclaim_id_reclaim")
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_reclaim_history")),
    )
    op.create_index(op.f("ix_reclaim_history_reclaim_id"), "reclaim_history", ["reclaim_id"], unique=False)
    op.create_table(
        "calibration",
        sa.Column("calibration_id", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("weights_version", sa.Integer(), nullable=False),
        sa.Column("capacity_mu_s", sa.BigInteger(), nullable=False),
        sa.Column("sequences", sa.Integer(), nullable=False),
        sa.Column("tpot_target_ms", sa.Integer(), nullable=False),
        sa.Column("ttft_target_ms", sa.Integer(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), nullable=False),
        sa.Column("error_permille", sa.Integer(), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("capacity_mu_s > 0 and sequences > 0", name=op.f("ck_calibration_positive")),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_calibration_model_model")),
        sa.PrimaryKeyConstraint("calibration_id", name=op.f("pk_calibration")),
    )
    op.create_index(op.f("ix_calibration_pool"), "calibration", ["pool"], unique=False)
    op.create_table(
        "contract_history",
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("after", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract_id"], ["contract.contract_id"], name=op.f("fk_contract_history_contract_id_contract")
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_contract_history")),
    )
    op.create_index(
        op.f("ix_contract_history_contract_id"), "contract_history", ["contract_id"], unique=False
    )
    op.create_table(
        "contract_minute",
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("minute_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("assigned_mu", sa.BigInteger(), nullable=False),
        sa.Column("used_mu", sa.BigInteger(), nullable=False),
        sa.Column("lent_mu", sa.BigInteger(), nullable=False),
        sa.Column("borrowed_mu", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.BigInteger(), nullable=False),
        sa.Column("shortfall_mu", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract_id"], ["contract.contract_id"], name=op.f("fk_contract_minute_contract_id_contract")
        ),
        sa.PrimaryKeyConstraint("contract_id", "minute_ms", name=op.f("pk_contract_minute")),
    )
    op.create_table(
        "contract_shortfall",
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("second_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("assigned_mu", sa.BigInteger(), nullable=False),
        sa.Column("cut_mu", sa.BigInteger(), nullable=False),
        sa.Column("reclaim_id", sa.Text(), nullable=False),
        sa.CheckConstraint("cut_mu > 0 and cut_mu <= assigned_mu", name=op.f("ck_contract_shortfall_cut")),
        sa.ForeignKeyConstraint(
            ["contract_id"], ["contract.contract_id"], name=op.f("fk_contract_shortfall_contract_id_contract")
        ),
        sa.ForeignKeyConstraint(
            ["reclaim_id"], ["reclaim.reclaim_id"], name=op.f("fk_contract_shortfall_reclaim_id_reclaim")
        ),
        sa.PrimaryKeyConstraint("contract_id", "second_ms", name=op.f("pk_contract_shortfall")),
    )
    op.create_table(
        "contract_step",
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("mu_s", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("mu_s >= 0", name=op.f("ck_contract_step_not_negative")),
        sa.ForeignKeyConstraint(
            ["contract_id"], ["contract.contract_id"], name=op.f("fk_contract_step_contract_id_contract")
        ),
        sa.PrimaryKeyConstraint("contract_id", "from_ms", name=op.f("pk_contract_step")),
    )
    op.add_column("tenant", sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
    op.create_check_constraint(op.f("ck_tenant_weight"), "tenant", "weight between 1 and 1000")
    op.add_column(
        "instance", sa.Column("priority", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("usage_event", sa.Column("decision", postgresql.JSONB(), nullable=True))
    for table in _APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def downgrade() -> None:
    op.drop_column("usage_event", "decision")
    op.drop_column("instance", "priority")
    op.drop_column("tenant", "weight")
    op.drop_table("contract_step")
    op.drop_table("contract_shortfall")
    op.drop_table("contract_minute")
    op.drop_index(op.f("ix_contract_history_contract_id"), table_name="contract_history")
    op.drop_table("contract_history")
    op.drop_index(op.f("ix_calibration_pool"), table_name="calibration")
    op.drop_table("calibration")
    op.drop_index(op.f("ix_reclaim_history_reclaim_id"), table_name="reclaim_history")
    op.drop_table("reclaim_history")
    op.drop_index(op.f("ix_contract_tenant_id"), table_name="contract")
    op.drop_index(op.f("ix_contract_pool"), table_name="contract")
    op.drop_table("contract")
    op.drop_index(op.f("ix_reclaim_pool"), table_name="reclaim")
    op.drop_table("reclaim")
    op.drop_table("pool")
