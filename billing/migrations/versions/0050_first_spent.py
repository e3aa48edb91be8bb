"""When spending of a budget began, so that it can be said when it runs out."""

import sqlalchemy as sa
from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("budget_spent", sa.Column("first_ms", sa.BigInteger(), nullable=True))
    # Of current periods; nothing is foreseen of others.
    op.execute("""
        update budget_spent s set first_ms = (
          select min(u.hour) * 3600000 from usage_hour u
          where u.tenant = b.tenant_id and u.project = coalesce(b.project_id, u.project)
            and u.key_id = coalesce(b.key_id, u.key_id) and u.hour >= b.from_ms / 3600000
            and u.amount_picousd > 0)
        from budget b
        where s.budget_id = b.budget_id and s.from_ms = b.from_ms
    """)


def downgrade() -> None:
    op.drop_column("budget_spent", "first_ms")
