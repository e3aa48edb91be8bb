"""What came of contracts by hour: sums that a trigger keeps with every minute that is written."""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

_SUMMED = ("assigned_mu", "used_mu", "lent_mu", "shortfall_mu")
_COLUMNS = ", ".join(_SUMMED)
_ADD = ", ".join(f"{name} = contract_hour.{name} + excluded.{name}" for name in _SUMMED)


def _insert(minutes: str) -> str:
    sums = ", ".join(f"sum(sign * {name})" for name in _SUMMED)
    return f"""
      insert into contract_hour (contract_id, hour, {_COLUMNS})
      select contract_id, minute_ms / 3600000, {sums} from ({minutes}) each group by 1, 2 order by 1, 2
      on conflict (contract_id, hour) do update set {_ADD}
    """  # noqa: S608 (constants)


def upgrade() -> None:
    op.create_table(
        "contract_hour",
        sa.Column("contract_id", sa.Text(), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMMED),
        sa.ForeignKeyConstraint(
            ["contract_id"], ["contract.contract_id"], name=op.f("fk_contract_hour_contract_id_contract")
        ),
        sa.PrimaryKeyConstraint("contract_id", "hour", name=op.f("pk_contract_hour")),
    )
    # No minute is written from here to the commit, so each is added once.
    op.execute("lock table contract_minute in share row exclusive mode")
    op.execute(_insert("select *, 1 as sign from contract_minute"))
    for event, added in (
        ("insert", "select *, 1 as sign from new_minutes"),
        (
            "update",
            "select *, 1 as sign from new_minutes union all select *, -1 from old_minutes",
        ),
    ):
        op.execute(
            f"create function add_contract_hour_{event}() returns trigger language plpgsql as "
            f"$$ begin {_insert(added)}; return null; end $$"
        )
        before = " old table as old_minutes" if event == "update" else ""
        op.execute(
            f"create trigger contract_minute_by_hour_{event} after {event} on contract_minute "
            f"referencing new table as new_minutes{before} "
            f"for each statement execute function add_contract_hour_{event}()"
        )


def downgrade() -> None:
    """The sums are lost; the minutes have what they were made of."""
    for event in ("insert", "update"):
        op.execute(f"drop trigger contract_minute_by_hour_{event} on contract_minute")
        op.execute(f"drop function add_contract_hour_{event}()")
    op.drop_table("contract_hour")
