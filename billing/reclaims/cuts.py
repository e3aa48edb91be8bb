"""What each contract loses while machines are taken against it, pro rata and exact. Pure arithmetic, except
for the two functions that read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from sqlalchemy import Connection

from billing.contracts.commitments import read_position
from billing.contracts.position import Holding, Position, Taken
from billing.contracts.rates import ContractRate, RatesByPool
from billing.contracts.timeline import Timeline
from billing.reclaims import store
from billing.reclaims.store import Reclaim


def cut_pro_rata(rates_mu_s: Mapping[str, int], cut_mu_s: int) -> dict[str, int]:
    """How much each contract gives up, in proportion to its rate: together exactly the amount to cut, or all
    there is. The remainders of rounding go to those rounded down by the most, then by name, so that the
    result is always the same.
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
    """By how much what is signed exceeds what there is because of these reclaims. A shortage without them is
    not theirs.
    """
    return shortage_by(position, [each.taken for each in breaking])


def shortage_by(position: Position, breaking: Sequence[Taken]) -> Timeline:
    """As `shortage_by_reclaims`, of what these take."""
    taken = list(position.taken)
    for each in breaking:
        if each in taken:
            taken.remove(each)
    without = replace(position, taken=tuple(taken))
    return position.shortage().with_other(without.shortage(), lambda now, anyway: max(0, now - anyway))


@dataclass(frozen=True, slots=True)
class Cut:
    """When a contract has the smallest part of its rate, its signed rate then, and what it is left with."""

    from_ms: int
    signed_mu_s: int
    left_mu_s: int

    @property
    def lost(self) -> Fraction:
        """The part of the rate that it gives up."""
        return Fraction(self.signed_mu_s - self.left_mu_s, self.signed_mu_s)


def worst_cuts(holdings: Sequence[Holding], shortage: Timeline, from_ms: int) -> dict[str, Cut]:
    """The worst cut of each contract that is cut from that moment on; the earliest of equally bad ones."""
    lines = {held.contract_id: Timeline.total(held.spans()) for held in holdings}
    moments = {
        from_ms,
        *(at_ms for line in (shortage, *lines.values()) for at_ms, _ in line.points if at_ms > from_ms),
    }
    worst: dict[str, Cut] = {}
    for at_ms in sorted(moments):
        if not shortage.at(at_ms):
            continue
        rates = {name: rate for name, line in lines.items() if (rate := line.at(at_ms))}
        for name, cut_mu_s in cut_pro_rata(rates, shortage.at(at_ms)).items():
            found = Cut(at_ms, rates[name], rates[name] - cut_mu_s)
            if cut_mu_s and (name not in worst or found.lost > worst[name].lost):
                worst[name] = found
    return worst


def rates_after_cuts(rates: Sequence[ContractRate], cut_mu_s: int) -> list[ContractRate]:
    """The same contracts with the rates that are left when this much is cut of all together."""
    cuts = cut_pro_rata({rate.contract_id: rate.mu_s for rate in rates}, cut_mu_s)
    return [replace(rate, mu_s=rate.mu_s - cuts[rate.contract_id]) for rate in rates]


def rates_in_force(connection: Connection, signed: RatesByPool, now_ms: int) -> RatesByPool:
    """Reads what each contract may use now: its rate, less what a reclaim cuts of it. One query while no
    reclaim cuts.
    """
    breaking = store.list_all(connection, states=store.TAKING, breaks=True)
    cut = {each.pool for each in breaking if each.by_ms <= now_ms} & signed.keys()
    left = dict(signed)
    for pool in cut:
        ours = [each for each in breaking if each.pool == pool]
        shortage = shortage_by_reclaims(read_position(connection, pool, now_ms), ours)
        left[pool] = rates_after_cuts(signed[pool], shortage.at(now_ms))
    return left
