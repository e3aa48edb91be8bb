"""Indexes for the filters of the audit log, and for where it stood at the end of a day."""

from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

_COLUMNS = ("at_ms", "actor", "action", "kind", "subject")


def upgrade() -> None:
    """Some seconds for a million entries, in which nothing is changed."""
    for column in _COLUMNS:
        op.create_index(op.f(f"ix_audit_log_{column}_entry"), "audit_log", [column, "entry"])


def downgrade() -> None:
    for column in _COLUMNS:
        op.drop_index(op.f(f"ix_audit_log_{column}_entry"), "audit_log")
