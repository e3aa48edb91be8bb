"""Sums by hour have the work of requests, in milliunits."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

_COUNTS = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output",
)  # fmt: skip
# Each column of the key, and what it is of an event and its transaction.
_KEY = {
    "tenant": "tenant", "hour": "ended_ms / 3600000", "project": "project", "key_id": "key_id",
    "model": "model", '"class"': "case when line is null then \"class\" else 'batch' end",
    "instance": "instance", "pricing": "pricing", "price_id": "price_id",
    "contract": "coalesce(contract, '')",
}  # fmt: skip


def _insert(counts: tuple[str, ...]) -> str:
    """Of the transactions in `added`: what each adds, and what the one that it corrects had added. The later
    parts of a resumed request are no requests of their own.
    """
    group = ", ".join(str(number) for number in range(1, len(_KEY) + 1))
    add = ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in (*counts, "amount_picousd"))
    return f"""
      insert into usage_hour ({", ".join(_KEY)}, {", ".join(counts)}, amount_picousd)
      select {", ".join(_KEY.values())},
        coalesce(sum(sign) filter (where request_id not like 'req\\_%-%'), 0),
        {", ".join(f"sum(sign * {name})" for name in counts[1:])}, sum(amount)
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
      group by {group}
      order by {group}
      on conflict ({", ".join(_KEY)}) do update set {add}
    """  # noqa: S608 (constants)


def _fill(counts: tuple[str, ...]) -> None:
    """Add up everything anew. Nothing is recorded from here to the commit, so each transaction is added
    once.
    """
    op.execute(
        "create or replace function add_usage_hour() returns trigger language plpgsql as "
        f"$$ begin {_insert(counts)}; return null; end $$"
    )
    # A name for all transactions, as the trigger has one for the new ones.
    op.execute("create temporary view added as select * from ledger_transaction")
    op.execute(_insert(counts))
    op.execute("drop view added")


def upgrade() -> None:
    op.execute("lock table ledger_transaction in share row exclusive mode")
    op.execute("truncate usage_hour")
    op.add_column("usage_hour", sa.Column("units_mu", sa.BigInteger(), nullable=False))
    _fill((*_COUNTS, "units_mu"))


def downgrade() -> None:
    op.execute("lock table ledger_transaction in share row exclusive mode")
    op.execute("truncate usage_hour")
    op.drop_column("usage_hour", "units_mu")
    _fill(_COUNTS)
