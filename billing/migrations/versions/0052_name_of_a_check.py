"""The check on the bounds of autoscaling gets the name that the code has for it."""

from alembic import op

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None


_OLD = "ck_autoscaling_ck_autoscaling_bounds"
_NEW = "ck_autoscaling_bounds"


def upgrade() -> None:
    op.execute(f"alter table autoscaling rename constraint {_OLD} to {_NEW}")


def downgrade() -> None:
    op.execute(f"alter table autoscaling rename constraint {_NEW} to {_OLD}")
