"""Which period of a tenant is closed next, and what its invoice covers. It closes nothing."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from billing.catalogue.money import ZERO
from billing.catalogue.tenants import Tenant
from billing.contracts.timeline import FOREVER_MS
from billing.invoices import store
from billing.invoices.lines import Terms, capacity_amount
from billing.invoices.periods import days, name_of, next_name, period
from billing.invoices.terms import capacity_charges, list_terms, terms_at
from billing.moments import HOUR_MS
from billing.schema.ledger import in_days, usage_event, usage_hour


@dataclass(frozen=True, slots=True)
class Span:
    """What an invoice covers, [from, until), and the terms of so many days."""

    from_ms: int
    until_ms: int
    terms: Terms


def next_period(connection: Connection, tenant: Tenant) -> str | None:
    """The period that is closed next: after the last one, or the first with anything to pay. None if there is
    nothing yet.
    """
    last = store.last_of(connection, tenant.tenant_id)
    if last is not None:
        return next_name(last.period)
    first_ms = _first_owed_ms(connection, tenant)
    if first_ms is None:
        return None
    return _first_period(connection, tenant, first_ms)


def begun_period(connection: Connection, tenant: Tenant, now_ms: int) -> str:
    """The same, or the one of now if nothing is owed until now."""
    last = store.last_of(connection, tenant.tenant_id)
    if last is not None:
        return next_name(last.period)
    first_ms = _first_owed_ms(connection, tenant)
    return _first_period(connection, tenant, now_ms if first_ms is None else min(first_ms, now_ms))


def span_of(connection: Connection, tenant: Tenant, name: str, after_ms: int | None) -> Span:
    """What an invoice of this period covers; the last one went until `after_ms`, None: there is none. Raises
    ValueError for another form of `name`.
    """
    from_ms = after_ms
    if from_ms is None:
        starts_ms, _ = period(name, 1, tenant.time_zone)
        day = terms_at(connection, tenant.tenant_id, starts_ms).day
        from_ms, _ = period(name, day, tenant.time_zone)
    terms = terms_at(connection, tenant.tenant_id, from_ms)
    begins_ms, until_ms = period(name, terms.day, tenant.time_zone)
    return Span(from_ms, until_ms, terms.for_days(days(from_ms, until_ms), days(begins_ms, until_ms)))


def _first_period(connection: Connection, tenant: Tenant, first_ms: int) -> str:
    # Of the month in which it is, or of the one before: as `span_of` begins it.
    begins_ms, _ = period(name_of(first_ms, 1, tenant.time_zone), 1, tenant.time_zone)
    return name_of(first_ms, terms_at(connection, tenant.tenant_id, begins_ms).day, tenant.time_zone)


def _first_owed_ms(connection: Connection, tenant: Tenant) -> int | None:
    """From when there is usage, capacity with a price, or a commitment."""
    hour = connection.execute(
        select(func.min(usage_hour.c.hour)).where(usage_hour.c.tenant == tenant.tenant_id)
    ).scalar_one()
    moments = [] if hour is None else [_first_used_ms(connection, tenant.tenant_id, hour)]
    reserved = capacity_charges(connection, 0, FOREVER_MS, tenant.tenant_id)
    moments += [piece.from_ms for piece, _ in reserved if capacity_amount(piece)]
    moments += [
        max(dated.from_ms, tenant.created_ms)
        for dated in list_terms(connection, tenant.tenant_id)
        if dated.terms.commitment > ZERO
    ]
    return min(moments, default=None)


def _first_used_ms(connection: Connection, tenant_id: str, hour: int) -> int:
    """In this hour, in which a month may begin: not all time zones are whole hours from UTC."""
    of = usage_event.c
    query = select(func.min(of.ended_ms)).where(
        in_days(hour * HOUR_MS, (hour + 1) * HOUR_MS),
        of.tenant == tenant_id,
        of.ended_ms >= hour * HOUR_MS,
        of.ended_ms < (hour + 1) * HOUR_MS,
    )
    first_ms = connection.execute(query).scalar_one()
    return hour * HOUR_MS if first_ms is None else int(first_ms)
