"""Redis is told which instances a reclaim has: one more kind of change in the outbox."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint("kind", "projection_outbox", type_="check")
    op.create_check_constraint(
        "kind", "projection_outbox", "kind in ('tenant', 'key', 'model', 'instance', 'drain', 'stop')"
    )


def downgrade() -> None:
    op.execute("delete from projection_outbox where kind = 'drain'")
    op.drop_constraint("kind", "projection_outbox", type_="check")
    op.create_check_constraint(
        "kind", "projection_outbox", "kind in ('tenant', 'key', 'model', 'instance', 'stop')"
    )
