"""Engines that tell what each request has produced, and what each told of its requests when it was last
asked.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "instance", sa.Column("counts", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("engine_counter", sa.Column("requests", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("engine_counter", "requests")
    op.drop_column("instance", "counts")
