"""What tenants owe for reserved capacity, and what they get back for what was short of it, by time: exact, as
their invoices charge it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from sqlalchemy import Connection, select

from billing.invoices.lines import Reserved, capacity_amount, short_amount
from billing.invoices.terms import CapacityPrice, capacity_charges, first_minutes
from billing.moments import HOUR_MS
from billing.schema.capacity import contract_hour, contract_minute


def capacity_by_time(
    connection: Connection, edges_ms: Sequence[int], tenant_id: str | None = None
) -> dict[tuple[str, int], tuple[Fraction, Fraction]]:
    """The charge and the credits of each contract, of a tenant or of all, in each span between the edges, in
    pico-dollars.
    """
    charges: defaultdict[tuple[str, int], Fraction] = defaultdict(Fraction)
    credits: defaultdict[tuple[str, int], Fraction] = defaultdict(Fraction)
    pieces = capacity_charges(connection, edges_ms[0], edges_ms[-1], tenant_id)
    for piece, _ in pieces:
        for span, (from_ms, until_ms) in enumerate(pairwise(edges_ms)):
            length_ms = min(piece.until_ms, until_ms) - max(piece.from_ms, from_ms)
            if length_ms > 0:
                charges[piece.contract, span] += capacity_amount(
                    replace(piece, from_ms=0, until_ms=length_ms)
                )
    firsts = first_minutes(pieces)
    for contract, minute_ms, mu in _short_minutes(connection, edges_ms, pieces):
        for piece, price in pieces:
            first_ms = firsts[piece.contract, piece.from_ms]
            if piece.contract == contract and first_ms <= minute_ms < piece.until_ms:
                span = bisect_right(edges_ms, minute_ms) - 1
                credits[contract, span] += short_amount(mu, price.picousd, price.sla_percent)
    return {name: (charge, credits.get(name, Fraction(0))) for name, charge in charges.items()}


def _short_minutes(
    connection: Connection, edges_ms: Sequence[int], pieces: Iterable[tuple[Reserved, CapacityPrice]]
) -> list[tuple[str, int, int]]:
    """Contract, minute and mu, of contracts that get something back. Hours without a shortfall are not
    looked at.
    """
    given_back = sorted({piece.contract for piece, price in pieces if price.sla_percent})
    hour, minute = contract_hour.c, contract_minute.c
    query = (
        select(minute.contract_id, minute.minute_ms, minute.shortfall_mu)
        .join_from(
            contract_hour,
            contract_minute,
            (minute.contract_id == hour.contract_id)
            & (minute.minute_ms >= hour.hour * HOUR_MS)
            & (minute.minute_ms < (hour.hour + 1) * HOUR_MS),
        )
        .where(
            hour.contract_id.in_(given_back),
            hour.shortfall_mu > 0,
            hour.hour >= edges_ms[0] // HOUR_MS,
            minute.minute_ms < edges_ms[-1],
            minute.shortfall_mu > 0,
        )
    )
    return [(row.contract_id, row.minute_ms, row.shortfall_mu) for row in connection.execute(query)]
