"""Prices requests that were recorded before their model had a price: new transactions beside the unpriced
ones, which stay as they are.

All of it is in one SQL transaction of the caller's, with prices locked, so a preview shows exactly what is
done. Doing it again finds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, text

from billing.catalogue.budgets import of_tenants
from billing.catalogue.money import Money
from billing.catalogue.price_book import hold_prices
from billing.ledger.budget_spent import recount
from billing.ledger.chain import chain_waiting

_CHAINED_AT_ONCE: Final = 1000
# The amount of an event `e` at a price `p`, as `Price.amount` has it.
AMOUNT: Final = """(
  (e.billed_prompt - e.billed_cached - e.billed_written)::numeric * p.input_picousd
  + e.billed_cached::numeric * p.cached_input_picousd
  + e.billed_written::numeric * coalesce(p.cache_write_picousd, p.input_picousd)
  + e.billed_output::numeric * p.output_picousd)"""
# The price that holds for an event `e`, as `entries.price_scopes` looks for it.
HELD: Final = """
  select held.* from price held left join contract c on c.contract_id = held.contract_id
  where held.model = e.model and held.valid_from_ms <= e.started_ms
    and not exists (select from price_withdrawal w where w.price_id = held.price_id)
    and (held.class is null or held.class = e.class or (held.class = 'batch' and e.line is not null))
    and (held.contract_id is null or held.contract_id = e.contract or (
      e.contract is null and e.decision ->> 'why' = 'spilled' and c.tenant_id = e.tenant and c.pool = e.pool
      and c.starts_ms <= e.started_ms and e.started_ms < c.effective_end_ms))
  order by held.contract_id is null, c.starts_ms desc, held.contract_id desc,
    case held.class when 'batch' then 0 else 1 end, held.class is null, held.valid_from_ms desc
  limit 1"""
# The unpriced requests of a model, with the price that the price list has for their moment now.
_DUE: Final = f"""
select t.transaction_id, t.request_id, t.day, e.tenant, e.model, e.billed_prompt, e.billed_cached,
  e.billed_written, e.billed_output, p.price_id, {AMOUNT} as amount
from ledger_transaction t
join usage_event e using (request_id, day)
left join lateral ({HELD}) p on true
where t.pricing = 'unpriced' and e.model = :model and e.started_ms >= :from_ms and e.started_ms < :until_ms
  and (cast(:tenant as text) is null or e.tenant = :tenant)
  and not exists (select from ledger_transaction c where c.corrects = t.transaction_id)
"""  # noqa: S608 (constants)
_PREVIEW: Final = f"""
select tenant, price_id, count(*) as requests,
  sum(billed_prompt - billed_cached - billed_written) as uncached, sum(billed_cached) as cached,
  sum(billed_written) as written,
  sum(billed_output) as output, sum(amount) as amount
from ({_DUE}) due group by tenant, price_id order by tenant, price_id
"""  # noqa: S608 (constants)
_PRICE: Final = f"""
with due as ({_DUE}), made as (
  insert into ledger_transaction (request_id, day, pricing, price_id, corrects)
  select request_id, day, 'priced', price_id, transaction_id from due where price_id is not null
  order by request_id
  returning transaction_id, corrects
)
insert into ledger_posting (transaction_id, line, account, holder, amount_picousd)
select made.transaction_id, line.number, line.account,
  case line.account when 'receivable' then due.tenant else due.model end, line.sign * due.amount
from made join due on due.transaction_id = made.corrects
cross join (values (0, 'receivable', 1), (1, 'revenue', -1)) as line (number, account, sign)
where due.amount <> 0
"""  # noqa: S608 (constants)


@dataclass(frozen=True, slots=True)
class Scope:
    """Unpriced requests of a model that started in [from, until), of one tenant or of all."""

    model: str
    from_ms: int
    until_ms: int
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What one tenant used at one price. `price_id` None: no price holds for it, and it stays unpriced."""

    tenant_id: str
    price_id: int | None
    requests: int
    uncached: int
    cached: int
    written: int
    output: int
    amount: Money | None


def backfill(connection: Connection, scope: Scope, *, dry_run: bool) -> Sequence[Due]:
    """Price the requests in the scope; with `dry_run` only show the result."""
    hold_prices(connection)
    values: dict[str, Any] = {
        "model": scope.model, "from_ms": scope.from_ms, "until_ms": scope.until_ms, "tenant": scope.tenant_id,
    }  # fmt: skip
    found = [
        Due(
            tenant_id=row.tenant,
            price_id=row.price_id,
            requests=row.requests,
            uncached=int(row.uncached),
            cached=int(row.cached),
            written=int(row.written),
            output=int(row.output),
            amount=None if row.price_id is None else Money.from_sql(row.amount),
        )
        for row in connection.execute(text(_PREVIEW), values)
    ]
    if not dry_run and found:
        connection.execute(text(_PRICE), values)
        while chain_waiting(connection, most=_CHAINED_AT_ONCE, corrections=True):
            pass
        budgets = of_tenants(connection, {due.tenant_id for due in found})
        recount(connection, [budget for each in budgets.values() for budget in each])
    return found
