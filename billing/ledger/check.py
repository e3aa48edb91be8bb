"""Checks the ledger: every event has its transaction, every transaction balances, every amount is tokens
times price, the running totals are the sums of the events, and all is as it was chained. It corrects nothing.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

from billing.findings import Finding, FindingKind
from billing.ledger.backfill import AMOUNT, HELD
from billing.ledger.chain_check import check_chains
from billing.moments import HOUR_MS
from billing.schema.ledger import USAGE_SUMS

_IDS_MAX: Final = 20

_UNBALANCED: Final = """
select transaction_id::text as id from ledger_posting group by transaction_id having sum(amount_picousd) <> 0
"""
_OF_NO_ENTRY: Final = """
select transaction_id::text as id from ledger_posting p
where not exists (select from ledger_transaction t where t.transaction_id = p.transaction_id)
union
select transaction_id::text from ledger_transaction t
where price_id is not null and not exists (select from price p where p.price_id = t.price_id)
"""
_INCOMPLETE: Final = """
select e.request_id as id from usage_event e
left join ledger_transaction t using (request_id, day) where t.transaction_id is null
"""
_WITHOUT_EVENT: Final = """
select t.request_id as id from ledger_transaction t
left join usage_event e using (request_id, day) where t.request_id is not null and e.request_id is null
  and not exists (select from dropped_event d where d.transaction_id = t.transaction_id)
"""
_MISPRICED: Final = f"""
select t.request_id as id
from ledger_transaction t
join usage_event e using (request_id, day)
left join price p using (price_id)
left join ledger_posting r on r.transaction_id = t.transaction_id and r.account = 'receivable'
where coalesce(r.amount_picousd, 0) <> case when t.pricing = 'priced' then {AMOUNT} else 0 end
  or (t.pricing = 'priced' and t.price_id is distinct from (
    select price_id from ({HELD}) held))
  or (r.holder is not null and r.holder <> e.tenant)
"""  # noqa: S608 (constants)
_TOTALS: Final = """
select coalesce(s.instance, t.instance) || ' ' || coalesce(s.epoch, t.epoch) as id
from (
  select instance, epoch, sum(billed_prompt) as billed_prompt, sum(billed_output) as billed_output,
         sum(absorbed_prompt) as absorbed_prompt, sum(absorbed_output) as absorbed_output
  from (
    select instance, epoch, billed_prompt, billed_output, absorbed_prompt, absorbed_output from usage_event
    union all
    select instance, epoch, billed_prompt, billed_output, absorbed_prompt, absorbed_output from dropped_total
  ) each
  group by instance, epoch
) s
full join usage_total t on s.instance = t.instance and s.epoch = t.epoch
where (s.billed_prompt, s.billed_output, s.absorbed_prompt, s.absorbed_output)
  is distinct from (t.billed_prompt, t.billed_output, t.absorbed_prompt, t.absorbed_output)
"""
_HOURS: Final = f"""
select coalesce(s.tenant, h.tenant) || ' ' || coalesce(s.hour, h.hour) as id
from (
  select e.tenant, e.ended_ms / {HOUR_MS} as hour, sum(e.billed_prompt) as billed_prompt,
    sum(e.billed_output) as billed_output, sum(e.absorbed_prompt) as absorbed_prompt,
    sum(e.absorbed_output) as absorbed_output, sum(e.units_mu) as units_mu,
    sum(coalesce(r.amount_picousd, 0)) as amount_picousd
  from usage_event e
  join ledger_transaction t on t.request_id = e.request_id and t.day = e.day
    and not exists (select from ledger_transaction c where c.corrects = t.transaction_id)
  left join ledger_posting r on r.transaction_id = t.transaction_id and r.account = 'receivable'
  where e.kind = 'request' and e.ended_ms / {HOUR_MS} / 24 not in (select day from dropped_day)
  group by 1, 2
) s
full join (
  select tenant, hour, sum(billed_prompt) as billed_prompt, sum(billed_output) as billed_output,
    sum(absorbed_prompt) as absorbed_prompt, sum(absorbed_output) as absorbed_output,
    sum(units_mu) as units_mu, sum(amount_picousd) as amount_picousd
  from usage_hour where hour / 24 not in (select day from dropped_day) group by tenant, hour
) h on s.tenant = h.tenant and s.hour = h.hour
where (s.billed_prompt, s.billed_output, s.absorbed_prompt, s.absorbed_output, s.units_mu, s.amount_picousd)
  is distinct from (h.billed_prompt, h.billed_output, h.absorbed_prompt, h.absorbed_output, h.units_mu,
    h.amount_picousd)
"""  # noqa: S608 (constants)
_SUMS: Final = ", ".join(f"sum({name}) as {name}" for name in USAGE_SUMS)
_DAYS: Final = f"""
select coalesce(d.tenant, h.tenant) || ' ' || coalesce(d.day, h.day) as id
from (
  select tenant, day, {_SUMS}
  from usage_day where day in (select day from summed_day where whole) group by tenant, day
) d
full join (
  select tenant, hour / 24 as day, {_SUMS}
  from usage_hour where hour / 24 in (select day from summed_day where whole) group by 1, 2
) h on d.tenant = h.tenant and d.day = h.day
where ({", ".join(f"d.{name}" for name in USAGE_SUMS)})
  is distinct from ({", ".join(f"h.{name}" for name in USAGE_SUMS)})
"""  # noqa: S608 (constants)
_ACCOUNTS: Final = """
select account || ' ' || holder as id
from (
  select p.account, p.holder, sum(p.amount_picousd) as amount
  from ledger_posting p join ledger_transaction t using (transaction_id)
  where t.kind = 'request' group by 1, 2
) s
full join (
  select 'receivable' as account, tenant as holder, sum(amount_picousd) as amount from usage_hour group by 2
  union all select 'revenue', model, -sum(amount_picousd) from usage_hour group by 2
) h using (account, holder)
where coalesce(s.amount, 0) <> coalesce(h.amount, 0)
"""
_CHECKS: Final = (
    (FindingKind.LEDGER_UNBALANCED, "ledger transactions whose postings do not sum to zero", _UNBALANCED),
    (FindingKind.LEDGER_INCOMPLETE, "usage events without a ledger transaction", _INCOMPLETE),
    (FindingKind.LEDGER_INCOMPLETE, "postings of no transaction, transactions of no price", _OF_NO_ENTRY),
    (FindingKind.LEDGER_INCOMPLETE, "entries of requests whose usage event is gone", _WITHOUT_EVENT),
    (
        FindingKind.LEDGER_MISPRICED,
        "requests whose amount is not their tokens at the price that held",
        _MISPRICED,
    ),
    (FindingKind.TOTALS_DIFFER, "running totals that are not the sums of the events", _TOTALS),
    (FindingKind.TOTALS_DIFFER, "hours of a tenant that are not the sums of its requests", _HOURS),
    (FindingKind.TOTALS_DIFFER, "accounts of requests that are not the sums of their hours", _ACCOUNTS),
    (FindingKind.TOTALS_DIFFER, "days of a tenant that are not the sums of its hours", _DAYS),
)
_SET_ASIDE: Final = (
    (
        FindingKind.USAGE_REJECTED,
        "usage entries that could not be read and are billed to nobody",
        "select digest as id from usage_rejected",
    ),
    (
        FindingKind.USAGE_CONFLICT,
        "requests with a second event that differs from the one that counts",
        "select request_id as id from usage_conflict",
    ),
)
_NOT_FOR_SALE: Final = """
select m.name as id from model m
where m.status = 'active' and m.visible <> 'internal' and not exists (
  select from price p where p.model = m.name and p.class is null and p.contract_id is null
    and p.valid_from_ms <= (extract(epoch from clock_timestamp()) * 1000)::bigint
    and not exists (select from price_withdrawal w where w.price_id = p.price_id))
"""
_NO_AMOUNT: Final = (
    (FindingKind.UNPRICED, "billed requests without an amount: no price held when they started", "unpriced"),
    (FindingKind.QUARANTINED, "requests whose usage is in doubt, kept off the bill", "quarantined"),
)


def check_ledger(connection: Connection) -> list[Finding]:
    """Reads every fact, in one snapshot: for an audit that somebody asked for. `check_chains` alone reads
    what was added since a checkpoint.
    """
    found = [
        finding for kind, message, query in _CHECKS for finding in _found(connection, kind, message, query)
    ]
    return found + check_chains(connection).findings()


def set_aside(connection: Connection) -> list[Finding]:
    """What is recorded but needs a person: rejected entries, conflicts, requests without an amount."""
    found = [
        finding for kind, message, query in _SET_ASIDE for finding in _found(connection, kind, message, query)
    ]
    for kind, message, pricing in _NO_AMOUNT:
        query = (
            "select t.request_id as id from ledger_transaction t "  # noqa: S608 (a constant of ours)
            f"where t.pricing = '{pricing}' "
            "and not exists (select from ledger_transaction c where c.corrects = t.transaction_id)"
        )
        found += _found(connection, kind, message, query)
    message = (
        "models without a price: unknown to external tenants; `taas price set` sells them, `--free` "
        "gives them away"
    )
    return [*found, *_found(connection, FindingKind.NOT_FOR_SALE, message, _NOT_FOR_SALE)]


def _found(connection: Connection, kind: FindingKind, message: str, query: str) -> Sequence[Finding]:
    rows = connection.execute(
        text(f"select id, count(*) over () as total from ({query}) found order by id limit {_IDS_MAX}")  # noqa: S608 (constants)
    ).all()
    if not rows:
        return ()
    return (Finding(kind=kind, message=message, count=rows[0].total, ids=tuple(row.id for row in rows)),)
