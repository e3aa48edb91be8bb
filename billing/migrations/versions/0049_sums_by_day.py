"""Usage by day: the sums by hour, added up, so that a month is read from its days. Triggers of `usage_hour`
keep them, whichever version of billing records.
"""

import sqlalchemy as sa
from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None

_TEXTS = ("project", "key_id", "model", "class", "contract", "instance", "pricing")
_COUNTS = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output", "units_mu",
)  # fmt: skip
_NAMES = ("tenant", "day", *_TEXTS, "price_id")
_SUMS = (*_COUNTS, "amount_picousd")
_KEY = ", ".join(f'"{name}"' for name in _NAMES)
_COLUMNS = f"{_KEY}, {', '.join(_SUMS)}"
_DAYS = ", ".join("hour / 24" if name == "day" else f'"{name}"' for name in _NAMES)
_GROUP = ", ".join(str(number) for number in range(1, len(_NAMES) + 1))
_ADD = ", ".join(f"{name} = usage_day.{name} + excluded.{name}" for name in _SUMS)


def _insert(rows: str) -> str:
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    return (
        f"insert into usage_day ({_COLUMNS}) select {_DAYS}, {sums} from {rows} hours "  # noqa: S608
        f"group by {_GROUP} order by {_GROUP}"
    )


def _trigger(event: str, tables: str, rows: str) -> None:
    op.execute(f"""
        create function {event}_usage_day() returns trigger language plpgsql as $$
        begin
          if exists (select from added) then
            {_insert(rows)} on conflict ({_KEY}) do update set {_ADD};
          end if;
          return null;
        end $$
    """)
    op.execute(
        f"create trigger usage_hour_{event}_day after {event} on usage_hour referencing {tables} "
        f"for each statement execute function {event}_usage_day()"
    )


def upgrade() -> None:
    op.create_table(
        "usage_day",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in _TEXTS),
        sa.Column("price_id", sa.BigInteger(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.PrimaryKeyConstraint(*_NAMES, name=op.f("pk_usage_day")),
    )
    # Nothing is added from here to the commit, so each hour is counted once.
    op.execute("lock table usage_hour in share row exclusive mode")
    op.execute(_insert("usage_hour"))
    op.create_index(op.f("ix_usage_day_day"), "usage_day", ["day"])
    _trigger("insert", "new table as added", "added")
    less = ", ".join(f"-{name}" for name in _SUMS)
    names = ", ".join(f'"{"hour" if name == "day" else name}"' for name in _NAMES)
    _trigger(
        "update",
        "old table as taken new table as added",
        f"(select {names}, {', '.join(_SUMS)} from added union all select {names}, {less} from taken)",  # noqa: S608
    )


def downgrade() -> None:
    for event in ("insert", "update"):
        op.execute(f"drop function {event}_usage_day() cascade")
    op.drop_table("usage_day")
