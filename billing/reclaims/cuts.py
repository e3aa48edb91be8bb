"""What each contract gives up while machines are taken against it, pro rata and exact. Pure arithmetic, but for the two that say they read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from billing.contracts.commitments import read_position
from billing.contracts.position import Position
from billing.contracts.rates import ContractRate, rates_now
from billing.contracts.timeline import Timeline
from billing.reclaims import store
from billing.reclaims.store import Reclaim


def cut_pro_rata(rates_mu_s: Mapping[str, int], cut_mu_s: int) -> dict[str, int]:
    """How much each gives up, in proportion to its rate: together exactly what is to be cut, or all there is. The remainders of rounding go to
    those who were rounded down by the most, then by name, so that everybody who asks gets the same answer.
    """
    total = sum(rates_mu_s.values())
    wanted = max(0, min(cut_mu_s, total))
    if wanted == 0:
        return dict.fromkeys(rates_mu_s, 0)
    cuts = {name: rate * wanted // total for name, rate in rates_mu_s.items()}
    rounded = sorted(rates_mu_s, key=lambda name: (-(rates_mu_s[name] * wanted % total), name))
    for name in rounded[: wanted - sum(cuts.values())]:
        cuts[name] += 1
    return cuts


def shortage_by_reclaims(position: Position, breaking: Sequence[Reclaim]) -> Timeline:
    """By how much what is signed exceeds what there is because of these reclaims. What would be short without them is not theirs."""
    taken = list(position.taken)
    for each in breaking:
        if each.taken in taken:
            taken.remove(each.taken)
    without = replace(position, taken=tuple(taken))
    return position.shortage().with_other(without.shortage(), lambda now, anyway: max(0, now - anyway))


def rates_after_cuts(rates: Sequence[ContractRate], cut_mu_s: int) -> list[ContractRate]:
    """The same contracts at what is left of their rates when so much is cut of all together."""
    cuts = cut_pro_rata({rate.contract_id: rate.mu_s for rate in rates}, cut_mu_s)
    return [replace(rate, mu_s=rate.mu_s - cuts[rate.contract_id]) for rate in rates]


def cut_now(connection: Connection, pool: str, now_ms: int) -> int:
    """Reads by how much reclaims cut the contracts of a pool at this moment; nearly always 0, for one query."""
    breaking = store.list_all(connection, pool=pool, states=store.TAKING, breaks=True)
    if not any(each.by_ms <= now_ms for each in breaking):
        return 0
    return shortage_by_reclaims(read_position(connection, pool, now_ms), breaking).at(now_ms)


def rates_in_force(connection: Connection, pool: str, now_ms: int) -> list[ContractRate]:
    """Reads what each contract may have at this moment: its rate, less what a reclaim cuts of it. For the allocator."""
    return rates_after_cuts(rates_now(connection, pool, now_ms), cut_now(connection, pool, now_ms))
