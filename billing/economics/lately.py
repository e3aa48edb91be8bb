"""How each pool stands, and what its requests did of late, read from SQL: what is expected of it follows from
that.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

from sqlalchemy import Connection

from billing.contracts.commitments import read_position
from billing.economics import owed
from billing.economics.expected import Asked, Elsewhere, PoolOutlook
from billing.economics.months import Held, Used
from billing.economics.periods import whole_hour
from billing.economics.reading import (
    Months,
    read_catalogue,
    read_held,
    read_histories,
    read_used,
)
from billing.invoices.paid_for_models import PaidFor
from billing.moments import DAY_MS

BASIS_DAYS: Final = 28
# Over which capacity has its average price.
_AHEAD_MS: Final = 2 * 366 * DAY_MS


def read_outlooks(
    connection: Connection, at_ms: int, basis_days: int = BASIS_DAYS, only: str | None = None
) -> dict[str, PoolOutlook]:
    """Every pool, or one, as it is expected to go on: by its work of the last `basis_days` days."""
    catalogue = read_catalogue(connection)
    from_ms = whole_hour(at_ms - basis_days * DAY_MS)
    lately = Months((from_ms, at_ms))
    histories = read_histories(connection, catalogue)
    held, used = read_held(connection, catalogue, lately), read_used(connection, catalogue, lately)
    rates = owed.capacity_rates(connection, at_ms, at_ms + _AHEAD_MS)
    found = {}
    for pool in sorted(histories if only is None else histories.keys() & {only}):
        position = read_position(connection, pool, at_ms)
        asked, shared, elsewhere = _lately(used.get((pool, 0), []), held.get((pool, 0), []), at_ms - from_ms)
        found[pool] = PoolOutlook(
            history=histories[pool],
            position=position,
            uses={each.contract_id: catalogue.kinds[each.tenant_id] for each in position.holdings},
            held=asked,
            shared=shared,
            elsewhere=elsewhere,
            capacity=rates,
        )
    return found


def _lately(
    used: Sequence[Used], held: Sequence[Held], length_ms: int
) -> tuple[dict[str, Asked], list[Asked], list[Elsewhere]]:
    """By contract, without one, and at providers."""
    groups: defaultdict[tuple[str, str], list[Used]] = defaultdict(list)
    away: defaultdict[str, list[Used]] = defaultdict(list)
    for each in used:
        if each.units_mu or each.cost_makers:
            groups[each.contract, each.use].append(each)
        elif each.revenue_providers or each.cost_providers:
            away[each.use].append(each)
    signed = {each.contract: each.total for each in held}
    capacity = {each.contract: each.capacity_picousd - each.credits for each in held}
    asked: dict[str, Asked] = {}
    shared: list[Asked] = []
    for (contract, use), some in sorted(groups.items()):
        if not any(each.units_mu for each in some):
            continue
        if contract and signed.get(contract):
            made = _asked(use, some, Fraction(1000, signed[contract]), most=Fraction(1))
            if capacity[contract] > 0:
                made = replace(made, makers_capacity=_makers(some, PaidFor.CAPACITY, capacity[contract]))
            asked[contract] = made
        elif not contract:
            shared.append(_asked(use, some, Fraction(1000, length_ms)))
    elsewhere = [
        Elsewhere(
            use=use,
            earned=Fraction(sum(each.revenue for each in some), length_ms),
            cost=Fraction(sum(each.cost_providers or 0 for each in some), length_ms),
        )
        for use, some in sorted(away.items())
    ]
    return asked, shared, elsewhere


def _asked(use: str, some: Sequence[Used], unit: Fraction, most: Fraction | None = None) -> Asked:
    units_mu = sum(each.units_mu for each in some)
    listed = [each.list_picousd for each in some if each.list_picousd is not None]
    units = units_mu * unit
    return Asked(
        use=use,
        units=units if most is None else min(units, most),
        earned=Fraction(sum(each.revenue for each in some), units_mu),
        listed=Fraction(sum(listed), units_mu) if listed else None,
        makers=_makers(some, PaidFor.TOKENS, units_mu),
        makers_tokens=_makers(some, PaidFor.EACH_TOKEN, units_mu),
    )


def _makers(some: Sequence[Used], of: PaidFor, whole: int) -> Fraction:
    """What documents took off or gave back is not expected again."""
    return Fraction(sum(each.cost_makers for each in some if each.makers_of == of), whole)
