"""Usage events are in a partition for each day. What there is becomes the partition of no day (0), as it is;
earlier versions of billing that record beside this one add to it.

That a request is recorded once is held by the ledger, which keeps every request's entry. Triggers add what
its writer has not added itself to the sums by hour.
"""

import sqlalchemy as sa
from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None

# Each index that all partitions have: its name, what it is on, and of which rows.
_INDEXES = (
    ("ix_usage_event_tenant_ended_ms", "tenant, ended_ms", None),
    ("ix_usage_event_instance_epoch_ended_ms", "instance, epoch, ended_ms", None),
    (
        "ix_usage_event_not_final",
        "instance, epoch",
        "kind = 'request' and (ending = 'gateway_died' "
        "or usage_source in ('checkpoint', 'counted', 'unread'))",
    ),
    ("ix_usage_event_provider", "ended_ms", "provider is not null"),
)
# Those to usage events, and those whose check of each row costs recording most.
_FOREIGN_KEYS = (
    ("ledger_transaction", "request_id", "usage_event", "request_id"),
    ("usage_conflict", "request_id", "usage_event", "request_id"),
    ("reconciled_request", "request_id", "usage_event", "request_id"),
    ("reconciled_request", "reconciliation", "usage_event", "request_id"),
    ("ledger_posting", "transaction_id", "ledger_transaction", "transaction_id"),
    ("ledger_transaction", "price_id", "price", "price_id"),
)
_COUNTS = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output", "units_mu",
)  # fmt: skip
# Each column of the key of `usage_hour`, and what it is of an event and its transaction.
_KEY = {
    "tenant": "tenant", "hour": "ended_ms / 3600000", "project": "project", "key_id": "key_id",
    "model": "model", '"class"': "case when line is null then \"class\" else 'batch' end",
    "instance": "instance", "pricing": "pricing", "price_id": "price_id",
    "contract": "coalesce(contract, '')",
}  # fmt: skip


def _triggers(*, by_day: bool) -> None:
    """The functions of the ledger's triggers; `by_day`: they find events by their day, and leave out what is
    counted.
    """
    join = "using (request_id, day)" if by_day else "using (request_id)"
    added = "(select * from added where not counted)" if by_day else "added"
    none = "if not exists (select from added where not counted) then return null; end if;" if by_day else ""
    # All partitions would be read whole to be joined.
    how = "set enable_hashjoin = off set enable_mergejoin = off" if by_day else ""
    group = ", ".join(str(number) for number in range(1, len(_KEY) + 1))
    add = ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in (*_COUNTS, "amount_picousd"))
    op.execute(f"""
        create or replace function add_usage_hour() returns trigger language plpgsql {how} as $$
        begin
          {none}
          insert into usage_hour ({", ".join(_KEY)}, {", ".join(_COUNTS)}, amount_picousd)
          select {", ".join(_KEY.values())},
            coalesce(sum(sign) filter (where request_id not like 'req\\_%-%'), 0),
            {", ".join(f"sum(sign * {name})" for name in _COUNTS[1:])}, sum(amount)
          from (
            select e.*, t.pricing, coalesce(t.price_id, 0) as price_id, 1 as sign,
              case when t.price_id is null then 0 else
                (e.billed_prompt - e.billed_cached - e.billed_written)::numeric * p.input_picousd
                + e.billed_cached::numeric * p.cached_input_picousd
                + e.billed_written::numeric * coalesce(p.cache_write_picousd, p.input_picousd)
                + e.billed_output::numeric * p.output_picousd end as amount
            from {added} t join usage_event e {join} left join price p on p.price_id = t.price_id
            union all
            select e.*, 'unpriced', 0, -1, 0
            from {added} t join usage_event e {join} where t.corrects is not null
          ) each
          where kind = 'request'
          group by {group}
          order by {group}
          on conflict ({", ".join(_KEY)}) do update set {add};
          return null;
        end $$
    """)  # noqa: S608 (constants)
    op.execute(f"""
        create or replace function note_late_transaction() returns trigger language plpgsql {how} as $$
        begin
          {none}
          insert into late_transaction (transaction_id, tenant_id)
          select t.transaction_id, e.tenant
          from {added} t join usage_event e {join} join invoiced i on i.tenant_id = e.tenant
          where t.pricing = 'priced' and e.kind = 'request' and e.ended_ms < i.until_ms;
          return null;
        end $$
    """)  # noqa: S608 (constants)


def upgrade() -> None:
    op.execute("lock table ledger_transaction, usage_event in access exclusive mode")
    for table, column, to, _ in _FOREIGN_KEYS:
        op.drop_constraint(op.f(f"fk_{table}_{column}_{to}"), table)
    op.add_column("ledger_transaction", sa.Column("day", sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "ledger_transaction", sa.Column("counted", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.drop_index("uq_ledger_transaction_first", "ledger_transaction")
    op.drop_index(op.f("ix_ledger_transaction_request_id"), "ledger_transaction")
    op.execute(
        "create unique index uq_ledger_transaction_request on ledger_transaction (request_id, corrects) "
        "nulls not distinct where request_id is not null"
    )
    op.add_column("usage_event", sa.Column("day", sa.Integer(), server_default="0", nullable=False))
    op.drop_constraint(op.f("pk_usage_event"), "usage_event")
    op.rename_table("usage_event", "usage_event_d0")
    for name, _, _ in _INDEXES:
        op.execute(f"alter index {name} rename to {name}_d0")
    op.execute("alter table usage_event_d0 add constraint pk_usage_event_d0 primary key (request_id, day)")
    op.execute(
        "create table usage_event (like usage_event_d0 including defaults including constraints) "
        "partition by range (day)"
    )
    op.create_primary_key(op.f("pk_usage_event"), "usage_event", ["request_id", "day"])
    for name, columns, where in _INDEXES:
        op.execute(f"create index {name} on usage_event ({columns})" + (f" where {where}" if where else ""))
    op.execute("alter table usage_event attach partition usage_event_d0 for values from (0) to (1)")
    op.execute(
        "create trigger usage_event_append_only before update or delete or truncate on usage_event "
        "for each statement execute function refuse_change()"
    )
    _make_days()
    _triggers(by_day=True)


def _make_days() -> None:
    """Those of yesterday and of the next days; billing makes the others."""
    op.execute("""
        do $$
        declare
          today constant int := floor(extract(epoch from clock_timestamp()) / 86400);
          name text;
        begin
          for day in today - 1 .. today + 3 loop
            name := 'usage_event_d' || day;
            execute format('create table %I partition of usage_event for values from (%s) to (%s)',
              name, day, day + 1);
            execute format('create trigger %I before update or delete or truncate on %I '
              'for each statement execute function refuse_change()', name || '_append_only', name);
          end loop;
        end $$
    """)


def downgrade() -> None:
    """All events in one table, which takes as long as copying those of days."""
    op.execute("lock table ledger_transaction, usage_event in access exclusive mode")
    op.execute("alter table usage_event detach partition usage_event_d0")
    op.execute("insert into usage_event_d0 select * from usage_event")
    op.drop_table("usage_event")
    op.rename_table("usage_event_d0", "usage_event")
    op.execute("alter table usage_event drop constraint pk_usage_event_d0")
    op.drop_column("usage_event", "day")
    op.create_primary_key(op.f("pk_usage_event"), "usage_event", ["request_id"])
    for name, _, _ in _INDEXES:
        op.execute(f"alter index {name}_d0 rename to {name}")
    op.drop_index("uq_ledger_transaction_request", "ledger_transaction")
    op.create_index(op.f("ix_ledger_transaction_request_id"), "ledger_transaction", ["request_id"])
    op.create_index(
        "uq_ledger_transaction_first", "ledger_transaction", ["request_id"], unique=True,
        postgresql_where=sa.text("corrects is null"),
    )  # fmt: skip
    op.execute("drop function note_late_transaction() cascade")
    op.execute("drop function add_usage_hour() cascade")
    _triggers(by_day=False)
    for name, function in (("late", "note_late_transaction"), ("by_hour", "add_usage_hour")):
        op.execute(
            f"create trigger ledger_transaction_{name} after insert on ledger_transaction "
            f"referencing new table as added for each statement execute function {function}()"
        )
    op.drop_column("ledger_transaction", "counted")
    op.drop_column("ledger_transaction", "day")
    for table, column, to, key in _FOREIGN_KEYS:
        op.create_foreign_key(op.f(f"fk_{table}_{column}_{to}"), table, to, [column], [key])
