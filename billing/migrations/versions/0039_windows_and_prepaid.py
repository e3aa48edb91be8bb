"""Budgets of windows of some days, and of what prepaid credits can pay."""

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("budget", sa.Column("window_days", sa.Integer(), nullable=True))
    op.add_column("budget", sa.Column("window_starts", sa.Text(), nullable=True))
    op.drop_constraint(op.f("ck_budget_per"), "budget")
    op.drop_constraint(op.f("ck_budget_ends"), "budget")
    op.create_check_constraint(
        op.f("ck_budget_per"), "budget", "per in ('day', 'month', 'window', 'total', 'prepaid')"
    )
    op.create_check_constraint(
        op.f("ck_budget_ends"), "budget", "per = 'prepaid' or (per = 'total') = (until_ms is null)"
    )
    op.create_check_constraint(
        op.f("ck_budget_window"),
        "budget",
        "(per = 'window') = (window_days is not null) and (per = 'window') = (window_starts is not null)",
    )


def downgrade() -> None:
    """Fails where there are such budgets."""
    op.drop_constraint(op.f("ck_budget_window"), "budget")
    op.drop_constraint(op.f("ck_budget_per"), "budget")
    op.drop_constraint(op.f("ck_budget_ends"), "budget")
    op.create_check_constraint(op.f("ck_budget_per"), "budget", "per in ('day', 'month', 'total')")
    op.create_check_constraint(op.f("ck_budget_ends"), "budget", "(per = 'total') = (until_ms is null)")
    op.drop_column("budget", "window_days")
    op.drop_column("budget", "window_starts")
