"""How many instances of a pool a launcher runs, and how it starts them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "launch",
        sa.Column("pool", sa.Text(), primary_key=True),
        sa.Column("model", sa.Text(), sa.ForeignKey("model.name"), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("nodes", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("resources", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("engine_args", postgresql.ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")),
        sa.CheckConstraint("instances >= 0 and gpus >= 0 and nodes > 0", name=op.f("ck_launch_counts")),
    )


def downgrade() -> None:
    op.drop_table("launch")
