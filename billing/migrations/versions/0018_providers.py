"""An instance's kind, its own name for the model, and its slots: it may be another provider's API."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("engine", sa.Text(), nullable=False, server_default="vllm"))
    op.add_column("instance", sa.Column("engine_model", sa.Text(), nullable=True))
    op.add_column("instance", sa.Column("max_concurrency", sa.Integer(), nullable=True))
    op.create_check_constraint(op.f("ck_instance_concurrency"), "instance", "max_concurrency > 0")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_instance_concurrency"), "instance", type_="check")
    for name in ("max_concurrency", "engine_model", "engine"):
        op.drop_column("instance", name)
