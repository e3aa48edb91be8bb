"""What the report is made of, read from SQL: sums by month of what was used and held, and the history of each
pool. It computes nothing of its own.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    column,
    func,
    literal_column,
    select,
    true,
    values,
)

from billing.catalogue import models, pools
from billing.catalogue.models import Model
from billing.catalogue.price_book import PriceBook, list_prices
from billing.contracts import store as contracts
from billing.contracts.position import Holding
from billing.contracts.terms import Contract
from billing.contracts.timeline import FOREVER_MS
from billing.economics import machines, owed
from billing.economics.machine_time import Away, PoolHistory
from billing.economics.months import Held, Used
from billing.ledger.cost import COST_AMOUNT, COST_PRICE
from billing.ledger.entries import Pricing
from billing.moments import HOUR_MS
from billing.reclaims import store as reclaims
from billing.reclaims.shortfall import measured_over_time
from billing.schema.capacity import contract_hour, reclaim
from billing.schema.catalogue import instance, tenant
from billing.schema.ledger import in_days, usage_event, usage_hour
from billing.wire.engine_kinds import is_provider
from billing.wire.part_ids import LATER_PART_LIKE
from billing.wire.tokens import Tokens

_COUNTS: Final = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "units_mu",
    "amount_picousd",
)  # fmt: skip


# Of what belongs to a tenant and to no pool.
NO_POOL: Final = ""
T = TypeVar("T")
# By pool and month.
InMonths: TypeAlias = Mapping[tuple[str, int], list[T]]


@dataclass(frozen=True, slots=True)
class Months:
    """The starts of months, or parts of them, and the end of the last: whole hours, or now."""

    edges_ms: tuple[int, ...]

    @property
    def last_hour(self) -> int:
        """The hour after the last one; of the hour that it is now there is what has been so far."""
        return -(-self.edges_ms[-1] // HOUR_MS)

    @property
    def periods(self) -> list[tuple[int, int]]:
        """Each as [from, until)."""
        return list(zip(self.edges_ms, self.edges_ms[1:], strict=False))

    def index_of(self, column: ColumnElement[Any], unit_ms: int) -> ColumnElement[int]:
        """In SQL: which of them a moment in such units is in, from 0 on."""
        edges = ", ".join(str(edge // unit_ms) for edge in self.edges_ms[:-1])
        return func.width_bucket(column, literal_column(f"array[{edges}]::bigint[]")) - literal_column("1")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is as it is now, whatever the month: models by name, and each tenant's kind."""

    models: Mapping[str, Model]
    kinds: Mapping[str, str]

    def pool_of(self, model: str) -> str:
        """Its pool; of a model that is not known its name."""
        return self.models[model].pool if model in self.models else model


def read_catalogue(connection: Connection) -> Catalogue:
    """All models and tenants."""
    rows = connection.execute(select(tenant.c.tenant_id, tenant.c.kind))
    kinds = {row.tenant_id: row.kind for row in rows}
    return Catalogue({each.name: each for each in models.list_all(connection)}, kinds)


def own_use(pool: str, catalogue: Catalogue) -> str:
    """The use of machines that no reclaim has taken: internal, if all of the pool's models are visible to
    internal tenants only.
    """
    visible = {str(each.visible) for each in catalogue.models.values() if each.pool == pool}
    return "internal" if visible == {"internal"} else "external"


def use_now(connection: Connection, pool: str, catalogue: Catalogue, at_ms: int) -> str:
    """The use of these machines at this moment: as it was set, else by the models."""
    terms = machines.at(machines.of_pool(connection, pool), at_ms)
    return own_use(pool, catalogue) if terms is None or terms.use is None else terms.use


def read_histories(connection: Connection, catalogue: Catalogue) -> dict[str, PoolHistory]:
    """Every pool that has models or machines."""
    away: defaultdict[str, list[Away]] = defaultdict(list)
    for row in connection.execute(select(reclaim).where(reclaim.c.state != "cancelled")):
        if row.state in reclaims.TAKING or row.released_ms is not None:
            until_ms = FOREVER_MS if row.released_ms is None else row.released_ms
            away[row.pool].append(
                Away(use=row.use, instances=row.instances, from_ms=row.by_ms, until_ms=until_ms)
            )
    names = {each.pool for each in catalogue.models.values()} | set(pools.declared(connection))
    return {
        name: PoolHistory(
            pool=name,
            own_use=own_use(name, catalogue),
            sizes=[
                *((until_ms, was.instances) for until_ms, was in pools.past(connection, name)),
                (FOREVER_MS, pools.find(connection, name).instances),
            ],
            measured=measured_over_time(connection, name),
            terms=machines.of_pool(connection, name),
            away=away[name],
        )
        for name in sorted(names)
    }


def read_held(connection: Connection, catalogue: Catalogue, months: Months) -> InMonths[Held]:
    """Contracts by pool and month."""
    first_ms, last_ms = months.edges_ms[0], months.edges_ms[-1]
    evidence = _read_evidence(connection, months)
    charges = owed.capacity_owed(connection, months.edges_ms)
    found: defaultdict[tuple[str, int], list[Held]] = defaultdict(list)
    signed = contracts.list_all(connection, states=(*contracts.BINDING, "ended"), ends_after_ms=first_ms)
    for contract in signed:
        if min(contract.effective_end_ms, last_ms) <= max(contract.terms.starts_ms, first_ms):
            continue
        for month, (from_ms, until_ms) in enumerate(months.periods):
            total = signed_mu_ms(contract, from_ms, until_ms)
            known = evidence.get((contract.contract_id, month), {})
            if total or known:
                owes = charges.get((contract.contract_id, month), owed.CapacityOwed(0, 0))
                found[contract.terms.pool, month].append(
                    Held(
                        contract=contract.contract_id,
                        use=catalogue.kinds.get(contract.terms.tenant_id, "external"),
                        total=total,
                        capacity_picousd=owes.charge,
                        credits=owes.credits,
                        **known,
                    )
                )
    return found


def signed_mu_ms(contract: Contract, from_ms: int, until_ms: int) -> int:
    """What a contract assigns in [from, until)."""
    return sum(
        span.value * max(0, min(span.until_ms, until_ms) - max(span.from_ms, from_ms))
        for span in Holding.of(contract).spans()
    )


def _read_evidence(connection: Connection, months: Months) -> dict[tuple[str, int], dict[str, int]]:
    of = contract_hour.c
    month = months.index_of(of.hour, HOUR_MS)
    query = (
        select(of.contract_id, month, func.sum(of.used_mu), func.sum(of.lent_mu), func.sum(of.shortfall_mu))
        .where(of.hour >= months.edges_ms[0] // HOUR_MS, of.hour < months.last_hour)
        .group_by(of.contract_id, month)
    )
    return {
        (contract_id, index): {"used_mu": int(used), "lent_mu": int(lent), "short_mu": int(short)}
        for contract_id, index, used, lent, short in connection.execute(query)
    }


def read_used(connection: Connection, catalogue: Catalogue, months: Months) -> InMonths[Used]:
    """What requests used and owe, by pool and month; one entry for each model, kind of tenant and
    contract, price and place.
    """
    found: defaultdict[tuple[str, int], list[Used]] = defaultdict(list)
    for pool, month, used in (
        *_of_hours(connection, catalogue, months), *_of_providers(connection, catalogue, months)
    ):  # fmt: skip
        found[pool, month].append(used)
    shares = owed.maker_shares(connection, months.edges_ms)
    for (tenant_id, model, contract, paid_for, month), amount in shares.items():
        use = catalogue.kinds.get(tenant_id, "external")
        made = Used(use=use, model=model, contract=contract, cost_makers=amount, makers_of=paid_for)
        found[catalogue.pool_of(model), month].append(made)
    for term in owed.by_terms(connection, months.edges_ms[0], months.edges_ms[-1]):
        month = bisect_right(months.edges_ms, term.counts_ms) - 1
        use = catalogue.kinds.get(term.tenant_id, "external")
        made = Used(use=use, model="", revenue_terms=term.picousd)
        found[NO_POOL, month].append(made)
    return found


def _of_hours(connection: Connection, catalogue: Catalogue, months: Months) -> list[tuple[str, int, Used]]:
    of = usage_hour.c
    book = PriceBook(list_prices(connection))
    elsewhere = {
        row.instance_id
        for row in connection.execute(select(instance.c.instance_id, instance.c.engine))
        if is_provider(row.engine)
    }
    # A month at a time and by columns alone: then PostgreSQL knows how few groups there are, and sorts
    # nothing.
    edges = [edge // HOUR_MS for edge in months.edges_ms[:-1]]
    spans = values(
        column("month", Integer), column("first", BigInteger), column("last", BigInteger), name="months"
    ).data(list(zip(range(len(edges)), edges, [*edges[1:], months.last_hour], strict=True)))
    groups = (of.tenant, of.model, of.contract, of.instance, of.pricing, of.price_id)
    month = (
        select(*groups, func.min(of.hour).label("first_hour"), *(func.sum(of[name]) for name in _COUNTS))
        .where(of.hour >= spans.c.first, of.hour < spans.c.last)
        .group_by(*groups)
        .lateral("used")
    )
    query = select(spans.c.month, *month.c).select_from(spans.join(month, true()))
    found = []
    for index, tenant_id, model, contract, place, pricing, _, hour, *sums in connection.execute(query):
        away = place in elsewhere
        requests, prompt, cached, written, output, units_mu, amount = map(int, sums)
        tokens = Tokens(prompt, cached, output, written)
        price = book.at(model, hour * HOUR_MS)
        used = Used(
            use=catalogue.kinds.get(tenant_id, "external"),
            model=model,
            contract=contract,
            units_mu=0 if away else units_mu,
            list_picousd=None if away or price is None else price.amount(tokens).picousd,
            revenue=amount,
            revenue_providers=amount if away else 0,
            price_unknown_requests=requests if pricing == Pricing.UNPRICED.value else 0,
        )
        found.append((catalogue.pool_of(model), index, used))
    return found


def _of_providers(
    connection: Connection, catalogue: Catalogue, months: Months
) -> list[tuple[str, int, Used]]:
    """What providers charge, read from the requests, because a cost price may come later."""
    of = usage_event.c
    groups = (
        months.index_of(of.ended_ms, 1),
        of.tenant,
        of.model,
        func.coalesce(of.contract, literal_column("''")),
    )
    unknown = func.count().filter(COST_AMOUNT.is_(None), of.request_id.not_like(LATER_PART_LIKE))
    query = (
        select(*groups, func.sum(COST_AMOUNT), unknown)
        .select_from(usage_event.outerjoin(COST_PRICE, true()))
        .where(
            of.provider.is_not(None),
            of.kind == "request",
            in_days(months.edges_ms[0], months.edges_ms[-1]),
            of.ended_ms >= months.edges_ms[0],
            of.ended_ms < months.edges_ms[-1],
        )
        .group_by(*_by_place(groups))
    )
    return [
        (
            catalogue.pool_of(model),
            month,
            Used(
                use=catalogue.kinds.get(tenant_id, "external"),
                model=model,
                contract=contract,
                cost_providers=None if cost is None else int(cost),
                cost_unknown_requests=uncosted,
            ),
        )
        for month, tenant_id, model, contract, cost, uncosted in connection.execute(query)
    ]


def _by_place(groups: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    """The first columns of the query, by their numbers: an expression with parameters is never the same
    twice.
    """
    return [literal_column(str(number + 1)) for number in range(len(groups))]
