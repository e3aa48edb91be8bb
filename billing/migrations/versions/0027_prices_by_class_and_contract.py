"""Prices of one class or one contract, sums by hour that name the contract, and entries of the ledger that
are not of requests.
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

_COUNTS = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output",
)  # fmt: skip
_TOKENS = ", ".join(f"sum(sign * {name})" for name in _COUNTS[1:])
# Each column of the key, and what it is of an event and its transaction.
_BEFORE = {
    "tenant": "tenant", "hour": "ended_ms / 3600000", "project": "project", "key_id": "key_id",
    "model": "model", '"class"': '"class"', "instance": "instance", "pricing": "pricing",
    "price_id": "price_id",
}  # fmt: skip
_NOW = _BEFORE | {
    '"class"': "case when line is null then \"class\" else 'batch' end",
    "contract": "coalesce(contract, '')",
}
_ADD = ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in (*_COUNTS, "amount_picousd"))


def _insert(key: dict[str, str]) -> str:
    """Of the transactions in `added`: what each adds, and what the one that it corrects had added. The later
    parts of a resumed request are no requests of their own.
    """
    group = ", ".join(str(number) for number in range(1, len(key) + 1))
    return f"""
      insert into usage_hour ({", ".join(key)}, {", ".join(_COUNTS)}, amount_picousd)
      select {", ".join(key.values())},
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
      group by {group}
      order by {group}
      on conflict ({", ".join(key)}) do update set {_ADD}
    """  # noqa: S608 (constants)


def _fill(key: dict[str, str]) -> None:
    """Add up everything anew. Nothing is recorded from here to the commit, so each transaction is added
    once.
    """
    op.execute("lock table ledger_transaction in share row exclusive mode")
    columns = [name.strip('"') for name in key]
    op.create_primary_key(op.f("pk_usage_hour"), "usage_hour", columns)
    op.execute(
        "create or replace function add_usage_hour() returns trigger language plpgsql as "
        f"$$ begin {_insert(key)}; return null; end $$"
    )
    # A name for all transactions, as the trigger has one for the new ones.
    op.execute("create temporary view added as select * from ledger_transaction")
    op.execute(_insert(key))
    op.execute("drop view added")


def upgrade() -> None:
    op.add_column("price", sa.Column("contract_id", sa.Text(), nullable=True))
    op.add_column("price", sa.Column("class", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_price_contract_id_contract"), "price", "contract", ["contract_id"], ["contract_id"]
    )
    op.create_check_constraint(
        op.f("ck_price_class"), "price", "class in ('reserved', 'on_demand', 'flex', 'batch')"
    )
    _allow_other_entries()
    op.execute("truncate usage_hour")
    op.drop_constraint("pk_usage_hour", "usage_hour")
    op.add_column("usage_hour", sa.Column("contract", sa.Text(), nullable=False))
    _fill(_NOW)


def _allow_other_entries() -> None:
    op.add_column(
        "ledger_transaction", sa.Column("kind", sa.Text(), nullable=False, server_default="request")
    )
    op.add_column("ledger_transaction", sa.Column("subject", sa.Text(), nullable=True))
    op.alter_column("ledger_transaction", "request_id", nullable=True)
    op.alter_column("ledger_transaction", "pricing", nullable=True)
    op.create_check_constraint(
        op.f("ck_ledger_transaction_kind"),
        "ledger_transaction",
        "(kind = 'request') = (request_id is not null) and (kind = 'request') = (pricing is not null) and "
        "(kind = 'request') = (subject is null)",
    )
    op.create_unique_constraint(
        op.f("uq_ledger_transaction_kind_subject"), "ledger_transaction", ["kind", "subject"]
    )
    # The accounts are named in one place, which the types of the code hold to.
    op.drop_constraint(op.f("ck_ledger_posting_account"), "ledger_posting")


def downgrade() -> None:
    """Fails where the ledger has other entries, or prices of classes or contracts: that cannot be said in the
    schema before.
    """
    for table, condition in (
        ("ledger_transaction", "kind = 'request'"),
        ("price", 'contract_id is null and "class" is null'),
    ):
        op.create_check_constraint("only_as_before", table, condition)
        op.drop_constraint(op.f(f"ck_{table}_only_as_before"), table)
    op.execute("truncate usage_hour")
    op.drop_column("usage_hour", "contract")
    _fill(_BEFORE)
    op.drop_constraint(op.f("uq_ledger_transaction_kind_subject"), "ledger_transaction")
    op.drop_constraint(op.f("ck_ledger_transaction_kind"), "ledger_transaction")
    op.drop_column("ledger_transaction", "kind")
    op.drop_column("ledger_transaction", "subject")
    op.alter_column("ledger_transaction", "request_id", nullable=False)
    op.alter_column("ledger_transaction", "pricing", nullable=False)
    op.drop_column("price", "contract_id")
    op.drop_column("price", "class")
    op.create_check_constraint("account", "ledger_posting", "account in ('receivable', 'revenue')")
