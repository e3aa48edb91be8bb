"""How tenants are billed, and what their contracts' capacity costs: dated versions in SQL. It knows no HTTP.

What is agreed holds from a moment on and is changed only by a later version: of the past nothing changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from billing.catalogue.money import Money, MoneyError
from billing.catalogue.price_book import hold_prices
from billing.contracts.store import list_all
from billing.contracts.terms import Contract
from billing.contracts.timeline import FOREVER_MS
from billing.invoices.lines import Reserved, Terms, Tier
from billing.moments import MINUTE_MS, utc
from billing.refusals import Conflict, Invalid
from billing.schema.capacity import contract as contract_table
from billing.schema.invoices import capacity_price, invoiced, tenant_terms

# A price of a unit per second for an hour beyond this is a mistake.
_UNIT_HOUR_PICOUSD_MAX = 10**18


@dataclass(frozen=True, slots=True)
class DatedTerms:
    """The terms of periods that begin then or later."""

    from_ms: int
    terms: Terms


@dataclass(frozen=True, slots=True)
class CapacityPrice:
    """What a unit per second costs for an hour, in pico-dollars, from a moment on; and the percent of it that
    is given back for capacity that was short.
    """

    contract: str
    from_ms: int
    picousd: int
    sla_percent: int


def set_terms(connection: Connection, tenant_id: str, terms: Terms, from_ms: int) -> DatedTerms:
    """Add a version. Raises Conflict for a moment that is on an invoice; Invalid for tiers that contradict
    themselves.
    """
    _refuse_invoiced(connection, tenant_id, from_ms)
    if len({tier.above for tier in terms.tiers}) < len(terms.tiers):
        raise Invalid("Two tiers begin at the same amount.", param="tiers")
    connection.execute(
        insert(tenant_terms).values(
            tenant_id=tenant_id,
            from_ms=from_ms,
            day=terms.day,
            tax_name=terms.tax_name,
            tax_basis_points=terms.tax_basis_points,
            commitment_picousd=terms.commitment.picousd,
            tiers=stored_tiers(terms.tiers),
        )
    )
    return DatedTerms(from_ms, terms)


def _refuse_invoiced(connection: Connection, tenant_id: str, from_ms: int) -> None:
    # No period is closed until the caller's transaction ends.
    hold_prices(connection)
    closed = connection.execute(
        select(invoiced.c.until_ms).where(invoiced.c.tenant_id == tenant_id)
    ).scalar_one_or_none()
    if closed is not None and from_ms < closed:
        raise Conflict(
            f"There is an invoice of that moment: until {utc(closed)}.", param="from", code="already_invoiced"
        )


def list_terms(connection: Connection, tenant_id: str) -> list[DatedTerms]:
    """Those that hold from each moment on, the oldest first."""
    query = select(tenant_terms).where(tenant_terms.c.tenant_id == tenant_id)
    rows = connection.execute(query.order_by(tenant_terms.c.from_ms, tenant_terms.c.version))
    return list({row.from_ms: _terms(row) for row in rows}.values())


def terms_at(connection: Connection, tenant_id: str, moment_ms: int) -> Terms:
    """The terms of a period that begins then; without any, invoices are of calendar months without tax."""
    held = [each.terms for each in list_terms(connection, tenant_id) if each.from_ms <= moment_ms]
    return held[-1] if held else Terms()


def set_capacity_price(
    connection: Connection, contract: Contract, usd: str, sla_percent: int, from_ms: int, now_ms: int
) -> CapacityPrice:
    """Add a version. It may begin in the past only while the contract has none, and never in what is on an
    invoice: there its capacity would be on none. Raises Conflict, Invalid.
    """
    try:
        amount = Money.parse(usd)
    except MoneyError as exc:
        raise Invalid(str(exc), param="unit_hour") from exc
    if not 0 <= amount.picousd <= _UNIT_HOUR_PICOUSD_MAX:
        raise Invalid("A unit-hour costs 0 to 1000000 USD.", param="unit_hour")
    if from_ms < now_ms and list_capacity_prices(connection, [contract.contract_id]):
        raise Conflict(
            "The contract has a price already: the past keeps it.", param="from", code="already_priced"
        )
    _refuse_invoiced(connection, contract.terms.tenant_id, from_ms)
    connection.execute(
        insert(capacity_price).values(
            contract_id=contract.contract_id,
            from_ms=from_ms,
            unit_hour_picousd=amount.picousd,
            sla_percent=sla_percent,
        )
    )
    return CapacityPrice(contract.contract_id, from_ms, amount.picousd, sla_percent)


def list_capacity_prices(connection: Connection, contract_ids: Iterable[str]) -> list[CapacityPrice]:
    """Those that hold from each moment on, by contract, the oldest first."""
    query = select(capacity_price).where(capacity_price.c.contract_id.in_(set(contract_ids)))
    rows = connection.execute(
        query.order_by(capacity_price.c.contract_id, capacity_price.c.from_ms, capacity_price.c.version)
    )
    found = {
        (row.contract_id, row.from_ms): CapacityPrice(
            row.contract_id, row.from_ms, row.unit_hour_picousd, row.sla_percent
        )
        for row in rows
    }
    return list(found.values())


def lock_contract(connection: Connection, contract_id: str) -> None:
    """One change of a contract's price at a time."""
    connection.execute(
        select(contract_table.c.contract_id)
        .where(contract_table.c.contract_id == contract_id)
        .with_for_update()
    )


def capacity_charges(
    connection: Connection, from_ms: int, until_ms: int, tenant_id: str | None = None
) -> list[tuple[Reserved, CapacityPrice]]:
    """What contracts of a tenant, or of all, had reserved in [from, until), in pieces of one rate and one
    price, with that price. Contracts without a price are left out.
    """
    signed = [
        each
        for each in list_all(connection, tenant_id=tenant_id, ends_after_ms=from_ms)
        if each.state != "draft" and each.terms.starts_ms < until_ms
    ]
    prices: dict[str, list[CapacityPrice]] = {}
    for price in list_capacity_prices(connection, [each.contract_id for each in signed]):
        prices.setdefault(price.contract, []).append(price)
    return [
        piece
        for each in sorted(signed, key=lambda each: each.contract_id)
        for piece in _pieces(each, prices.get(each.contract_id, ()), from_ms, until_ms)
    ]


def first_minutes(pieces: Iterable[tuple[Reserved, CapacityPrice]]) -> dict[tuple[str, int], int]:
    """By contract and beginning of a piece: the first minute whose shortfall is that piece's. A minute is the
    one's in which it begins; where no other goes before, it is also the one's that begins within it.
    """
    pieces = list(pieces)
    ends = {(piece.contract, piece.until_ms) for piece, _ in pieces}
    return {
        place: place[1] if place in ends else place[1] - place[1] % MINUTE_MS
        for place in ((piece.contract, piece.from_ms) for piece, _ in pieces)
    }


def _pieces(
    contract: Contract, prices: Sequence[CapacityPrice], from_ms: int, until_ms: int
) -> Iterable[tuple[Reserved, CapacityPrice]]:
    starts_ms, ends_ms = (
        max(from_ms, contract.terms.starts_ms),
        min(until_ms, contract.effective_end_ms),
    )
    steps = [*((step.from_ms, step.mu_s) for step in contract.terms.steps), (FOREVER_MS, 0)]
    dated = [*((price.from_ms, price) for price in prices), (FOREVER_MS, None)]
    for (price_from, price), (price_until, _) in pairwise(dated):
        for (step_from, mu_s), (step_until, _) in pairwise(steps):
            begins, ends = max(starts_ms, price_from, step_from), min(ends_ms, price_until, step_until)
            if begins < ends and price is not None:
                yield (
                    Reserved(
                        contract=contract.contract_id,
                        from_ms=begins,
                        until_ms=ends,
                        mu_s=mu_s,
                        picousd=price.picousd,
                    ),
                    price,
                )


def _terms(row: Row[Any]) -> DatedTerms:
    return DatedTerms(
        row.from_ms,
        Terms(
            day=row.day,
            tax_name=row.tax_name,
            tax_basis_points=row.tax_basis_points,
            commitment=Money.from_sql(row.commitment_picousd),
            tiers=read_tiers(row.tiers),
        ),
    )


def stored_tiers(tiers: Iterable[Tier]) -> list[list[Any]]:
    """As JSON: where each begins, and its percent."""
    return [[str(tier.above), tier.percent] for tier in tiers]


def read_tiers(stored: Iterable[Sequence[Any]]) -> tuple[Tier, ...]:
    """What `stored_tiers` wrote."""
    return tuple(Tier(Money.parse(above), percent) for above, percent in stored)
