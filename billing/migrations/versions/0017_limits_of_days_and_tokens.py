"""Limits of a day, and of tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_ADDED = ("tokens_per_minute", "requests_per_day", "units_per_day", "tokens_per_day")
_BEFORE = "least(requests_per_minute, units_per_minute, concurrency) >= 0"
_AFTER = (
    "least(requests_per_minute, units_per_minute, tokens_per_minute, requests_per_day, units_per_day, "
    "tokens_per_day,"
    " concurrency) >= 0"
)


def upgrade() -> None:
    for name in _ADDED:
        op.add_column("quota_limit", sa.Column(name, sa.BigInteger(), nullable=True))
    _check(_AFTER)


def downgrade() -> None:
    _check(_BEFORE)
    for name in _ADDED:
        op.drop_column("quota_limit", name)


def _check(condition: str) -> None:
    op.drop_constraint(op.f("ck_quota_limit_not_negative"), "quota_limit", type_="check")
    op.create_check_constraint(op.f("ck_quota_limit_not_negative"), "quota_limit", condition)
