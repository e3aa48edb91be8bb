"""Usage by hour: sums that a trigger keeps with every transaction of the ledger, so that a month is read from
some thousand rows and not from all requests, whichever version of billing records.
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_TEXTS = ("tenant", "project", "key_id", "model", "class", "instance", "pricing")
_COUNTS = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output",
)  # fmt: skip
_KEY = 'tenant, hour, project, key_id, model, "class", instance, pricing, price_id'
_TOKENS = ", ".join(f"sum(sign * {name})" for name in _COUNTS[1:])
# Of the transactions in `added`: what each adds, and what the one that it corrects had added. The later parts
# of a resumed request are no requests of their own.
_SUMS = f"""
  select tenant, ended_ms / 3600000, project, key_id, model, "class", instance, pricing, price_id,
    coalesce(sum(sign) filter (where request_id not like 'req\\_%-%'), 0), {_TOKENS}, sum(amount)
  from (
    select e.*, t.pricing, coalesce(t.price_id, 0) as price_id, 1 as sign,
      case when t.price_id is null then 0 else
        (e.billed_prompt - e.billed_cached - e.billed_written)::numeric * p.input_picousd
        + e.billed_cached::numeric * p.cached_input_picousd
        + e.billed_written::numeric * coalesce(p.cache_write_picousd, p.input_picousd)
        + e.billed_output::numeric * p.output_picousd end as amount
    from added t join usage_event e using (request_id) left join price p on p.price_id = t.price_id
    union all
    select e.*, 'unpriced', 0, -1, 0
    from added t join usage_event e using (request_id) where t.corrects is not null
  ) each
  where kind = 'request'
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9
"""  # noqa: S608 (constants)
_COLUMNS = f"{_KEY}, {', '.join(_COUNTS)}, amount_picousd"
_ADD = ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in (*_COUNTS, "amount_picousd"))


def upgrade() -> None:
    op.create_table(
        "usage_hour",
        *(sa.Column(name, sa.Text(), nullable=False) for name in _TEXTS),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("price_id", sa.BigInteger(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.Column("amount_picousd", sa.Numeric(38, 0), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "hour", "project", "key_id", "model", "class", "instance", "pricing", "price_id",
            name=op.f("pk_usage_hour"),
        ),
    )  # fmt: skip
    op.create_index(op.f("ix_usage_hour_hour"), "usage_hour", ["hour"])
    op.create_index(
        "ix_usage_event_provider",
        "usage_event",
        ["ended_ms"],
        postgresql_where=sa.text("provider is not null"),
    )
    # Nothing is recorded from here to the commit, so each transaction is added once.
    op.execute("lock table ledger_transaction in share row exclusive mode")
    op.execute(
        f"insert into usage_hour ({_COLUMNS}) with added as (select * from ledger_transaction) {_SUMS}"  # noqa: S608
    )
    op.execute(f"""
        create function add_usage_hour() returns trigger language plpgsql as $$
        begin
          insert into usage_hour ({_COLUMNS}) {_SUMS} order by 1, 2, 3, 4, 5, 6, 7, 8, 9
          on conflict ({_KEY}) do update set {_ADD};
          return null;
        end $$
    """)
    op.execute(
        "create trigger ledger_transaction_by_hour after insert on ledger_transaction "
        "referencing new table as added for each statement execute function add_usage_hour()"
    )


def downgrade() -> None:
    """The sums are lost; the ledger has what they were made of."""
    op.execute("drop trigger ledger_transaction_by_hour on ledger_transaction")
    op.execute("drop function add_usage_hour()")
    op.drop_index("ix_usage_event_provider", "usage_event")
    op.drop_table("usage_hour")
