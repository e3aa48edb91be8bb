"""A model's cap on the bodies of its requests: one that reads photographs takes larger ones than the
gateway's default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("max_body_bytes", sa.Integer))
    op.create_check_constraint(op.f("ck_model_body_bytes"), "model", "max_body_bytes >= 1024")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_model_body_bytes"), "model")
    op.drop_column("model", "max_body_bytes")
