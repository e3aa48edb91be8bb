"""A tenant's sums of some hours are found without reading its other hours."""

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_usage_hour_tenant_hour"), "usage_hour", ["tenant", "hour"])


def downgrade() -> None:
    op.drop_index(op.f("ix_usage_hour_tenant_hour"), "usage_hour")
