"""Budgets: what may be spent in a period of the tenant's time zone, and what was spent."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


def upgrade() -> None:
    op.add_column(
        "tenant", sa.Column("time_zone", sa.Text(), nullable=False, server_default=sa.text("'UTC'"))
    )
    op.create_table(
        "budget",
        sa.Column("budget_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("per", sa.Text(), nullable=False),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.Column("raised_picousd", sa.Numeric(38, 0), nullable=True),
        sa.Column("raised_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("per in ('day', 'month', 'total')", name=op.f("ck_budget_per")),
        sa.CheckConstraint("(per = 'total') = (until_ms is null)", name=op.f("ck_budget_ends")),
        sa.CheckConstraint("project_id is null or key_id is null", name=op.f("ck_budget_whose")),
        sa.CheckConstraint("amount_picousd >= 0", name=op.f("ck_budget_not_negative")),
        sa.CheckConstraint(
            "(raised_picousd is null) = (raised_until_ms is null) and raised_picousd > 0",
            name=op.f("ck_budget_raised"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"], name=op.f("fk_budget_tenant_id_tenant")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.project_id"], name=op.f("fk_budget_project_id_project")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.key_id"], name=op.f("fk_budget_key_id_api_key")),
        sa.PrimaryKeyConstraint("budget_id", name=op.f("pk_budget")),
        sa.UniqueConstraint(
            "tenant_id",
            "project_id",
            "key_id",
            "per",
            name=op.f("uq_budget_tenant_id_project_id_key_id_per"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "budget_spent",
        sa.Column("budget_id", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"],
            ["budget.budget_id"],
            name=op.f("fk_budget_spent_budget_id_budget"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("budget_id", "from_ms", name=op.f("pk_budget_spent")),
    )
    op.create_table(
        "budget_alert",
        sa.Column("budget_id", sa.Text(), nullable=False),
        sa.Column("percent", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("sent_from_ms", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("'0'")),
        sa.Column("next_ms", sa.BigInteger(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("percent between 1 and 100", name=op.f("ck_budget_alert_percent")),
        sa.ForeignKeyConstraint(
            ["budget_id"],
            ["budget.budget_id"],
            name=op.f("fk_budget_alert_budget_id_budget"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("budget_id", "percent", name=op.f("pk_budget_alert")),
    )


def downgrade() -> None:
    """Budgets are lost, and nothing is refused by one any more."""
    op.drop_table("budget_alert")
    op.drop_table("budget_spent")
    op.drop_table("budget")
    op.drop_column("tenant", "time_zone")
