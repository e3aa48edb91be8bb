"""The audit log: every change of what an operator may change is an entry, written at the end of the
transaction that makes it, whoever makes it. Entries are chained by their hashes; nobody changes them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

_TEXTS = ("role", "action", "request_id", "why")
# What is logged: the columns that name a row, those that are never shown, those that are left out.
_AUDITED = (
    ("tenant", "tenant_id", "", ""),
    ("project", "project_id", "", ""),
    ("api_key", "key_id", "hash", ""),
    ("model", "name", "", ""),
    ("model_audience", "model,tenant_id", "", ""),
    ("model_weights", "model,version", "", ""),
    ("quota_limit", "limit_id", "", ""),
    ("adapter", "model", "", ""),
    ("instance", "instance_id", "engine_key", ""),
    ("pool", "pool", "", ""),
    ("launch", "pool", "", ""),
    ("autoscaling", "pool", "", "desired,why,decided_ms"),
    ("machine_terms", "entry", "", ""),
    ("calibration", "calibration_id", "", "report"),
    ("contract", "contract_id", "", ""),
    ("contract_step", "contract_id,from_ms", "", ""),
    ("reclaim", "reclaim_id", "", ""),
    ("price", "price_id", "", ""),
    ("price_withdrawal", "price_id", "", ""),
    ("cost_price", "price_id", "", ""),
    ("cost_price_withdrawal", "price_id", "", ""),
    ("budget", "budget_id", "", "from_ms,until_ms"),
    ("budget_alert", "budget_id,percent", "secret", "sent_from_ms,attempts,next_ms,failure"),
)
_TENANT_OF = {
    "model": "$1->>'owner'",
    "price": "(select tenant_id from contract where contract_id = $1->>'contract_id')",
    "contract_step": "(select tenant_id from contract where contract_id = $1->>'contract_id')",
    "budget_alert": "(select tenant_id from budget where budget_id = $1->>'budget_id')",
}

# Each value with its length in bytes, so that no two entries are the same text. `billing.accounts.audit_log`
# has the same in Python.
_APPEND = """
create function audit_append(kind text, subject text, tenant_id text, before json, after json)
returns void language plpgsql as $$
declare
  act constant jsonb := coalesce(nullif(current_setting('taas.audit', true), ''), '{}')::jsonb;
  actor constant text := coalesce(act->>'actor',
    'database:' || session_user || '/' || current_setting('application_name'));
  head audit_head;
  at_ms bigint;
  digest text;
begin
  select * into strict head from audit_head for update;
  head.entry := head.entry + 1;
  at_ms := (extract(epoch from clock_timestamp()) * 1000)::bigint;
  select encode(sha256(convert_to(string_agg(coalesce(octet_length(value)::text || ':' || value, '-'), ','
    order by place), 'UTF8')), 'hex') into digest
  from unnest(array[head.hash, head.entry::text, at_ms::text, actor, act->>'role', act->>'action',
    act->>'request_id', act->>'why', kind, subject, tenant_id, before::text, after::text])
    with ordinality as each (value, place);
  insert into audit_log values (head.entry, at_ms, actor, act->>'role', act->>'action', act->>'request_id',
    act->>'why', kind, subject, tenant_id, before, after, head.hash, digest);
  update audit_head set entry = head.entry, hash = digest;
end $$
"""
# Amounts of money are beyond what a number of JSON is in most programs.
_SHOWN = """
create function audit_shown(columns jsonb, hidden text[]) returns json language sql immutable as $$
  select jsonb_object_agg(key, case
    when value = 'null' then value
    when key = any(hidden) then '"(hidden)"'
    when key like '%\\_picousd' then to_jsonb(value #>> '{}')
    else value end)::json
  from jsonb_each(columns)
$$
"""
_ROW = """
create function audit_row() returns trigger language plpgsql as $$
declare
  keys constant text[] := string_to_array(tg_argv[0], ',');
  hidden constant text[] := string_to_array(tg_argv[1], ',');
  left_out constant text[] := string_to_array(tg_argv[2], ',') || array['updated_ms'];
  before jsonb;
  after jsonb;
  whole jsonb;
  subject text;
  tenant text;
begin
  if tg_op <> 'INSERT' then before := to_jsonb(old) - left_out; end if;
  if tg_op <> 'DELETE' then after := to_jsonb(new) - left_out; end if;
  whole := coalesce(after, before);
  if tg_op = 'UPDATE' then
    select jsonb_object_agg(each.key, each.value), jsonb_object_agg(each.key, after->each.key)
    into before, after
    from jsonb_each(before) each where each.value is distinct from after->each.key;
    if before is null then return null; end if;
  end if;
  select string_agg(whole->>key, '/' order by place) into subject
  from unnest(keys) with ordinality as each (key, place);
  execute 'select ' || tg_argv[3] into tenant using whole;
  perform audit_append(tg_table_name, subject, tenant, audit_shown(before, hidden),
    audit_shown(after, hidden));
  return null;
end $$
"""
# At the end of the transaction, so that the head is the last that it locks, and only for its commit.
_TABLE = """
create function audit_table(named regclass, keys text, hidden text default '', left_out text default '',
  tenant text default '$1->>''tenant_id''') returns void language plpgsql as $$
begin
  execute format('create constraint trigger audited after insert or update or delete on %s '
    'deferrable initially deferred for each row execute function audit_row(%L, %L, %L, %L)',
    named, keys, hidden, left_out, tenant);
end $$
"""


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("entry", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text()) for name in _TEXTS),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text()),
        sa.Column("before", sa.JSON()),
        sa.Column("after", sa.JSON()),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_tenant_id_entry"), "audit_log", ["tenant_id", "entry"])
    op.create_table(
        "audit_head",
        sa.Column("one", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("entry", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.CheckConstraint("one", name=op.f("ck_audit_head_one_row")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_audit_head")),
    )
    op.execute("insert into audit_head (entry, hash) values (0, repeat('0', 64))")
    for function in (_APPEND, _SHOWN, _ROW, _TABLE):
        op.execute(function)
    op.execute(
        "create trigger audit_log_append_only before update or delete or truncate on audit_log "
        "for each statement execute function refuse_change()"
    )
    for named, keys, hidden, left_out in _AUDITED:
        arguments = [named, keys, hidden, left_out, _TENANT_OF.get(named, "$1->>'tenant_id'")]
        quoted = ", ".join("'" + argument.replace("'", "''") + "'" for argument in arguments)
        op.execute(f"select audit_table({quoted})")


def downgrade() -> None:
    """The log is lost."""
    for named, *_ in _AUDITED:
        op.execute(f"drop trigger audited on {named}")
    op.drop_table("audit_log")
    op.drop_table("audit_head")
    for function in (
        "audit_table(regclass, text, text, text, text)", "audit_row()",
        "audit_shown(jsonb, text[])", "audit_append(text, text, text, json, json)",
    ):  # fmt: skip
        op.execute(f"drop function {function}")
