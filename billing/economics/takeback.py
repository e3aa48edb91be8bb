"""What of a pool's machines can be taken back for other uses, by when and for how much. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from billing.contracts.position import Holding, Position, Taken, worsened
from billing.contracts.terms import Contract, end_by_notice
from billing.economics.expected import PoolOutlook, with_end
from billing.economics.figures import Figures
from billing.economics.whatif import Changes, Ending, Move, outcome
from billing.reclaims.plan import machines_over_time, with_taken


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack:
    """So many machines can be taken for good from `from_ms` on, if these contracts are given notice now. What
    that changes until the end of the plan, in pico-dollars: `lost` revenue, and the cost that moves with the
    machines; None: not known.
    """

    from_ms: int
    machines: int
    notices: tuple[str, ...]
    lost: int
    cost: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assured:
    """What a contract brings for sure, if its tenant gives notice now: until when, how much capacity in
    mu_ms, and what is expected to be earned with it, in pico-dollars.
    """

    contract: str
    until_ms: int
    capacity: int
    revenue: int


def take_backs(
    pool: PoolOutlook, contracts: Sequence[Contract], edges_ms: Sequence[int], now_ms: int
) -> list[tuple[TakeBack, TakeBack]]:
    """At each edge but the last: without a notice, and with notice given now to each contract that would end
    by then.
    """
    before = _total(pool, edges_ms, Changes())
    found = []
    for at_ms in edges_ms[:-1]:
        ends = {
            each.contract_id: ends_ms
            for each in contracts
            if (ends_ms := end_by_notice(each.terms, "operator", now_ms)) <= at_ms
            and ends_ms < each.effective_end_ms
        }
        found.append((_at(pool, at_ms, {}, edges_ms, before), _at(pool, at_ms, ends, edges_ms, before)))
    return found


def _at(
    pool: PoolOutlook, at_ms: int, ends: Mapping[str, int], edges_ms: Sequence[int], before: Figures
) -> TakeBack:
    position = pool.position
    for name, ends_ms in ends.items():
        position = with_end(position, name, ends_ms)
    machines = most_to_take(position, at_ms)
    move = Move(pool=pool.history.pool, instances=machines, from_use=None, to_use="idle", from_ms=at_ms)
    endings = tuple(Ending(contract=name, ends_ms=ends_ms) for name, ends_ms in ends.items())
    after = _total(pool, edges_ms, Changes(moves=(move,) if machines else (), endings=endings))
    moved = _total(pool, edges_ms, Changes(moves=(move,) if machines else ()), use="idle")
    idle = _total(pool, edges_ms, Changes(), use="idle")
    known = moved.cost_machines is not None or not machines
    return TakeBack(
        from_ms=at_ms,
        machines=machines,
        notices=tuple(sorted(ends)),
        lost=before.revenue - after.revenue,
        cost=(moved.cost_machines or 0) - (idle.cost_machines or 0) if known else None,
    )


def _total(pool: PoolOutlook, edges_ms: Sequence[int], changes: Changes, use: str | None = None) -> Figures:
    found = outcome({pool.history.pool: pool}, edges_ms, changes)
    return Figures.total(figures for (_, _, cell), figures in found.items() if use is None or cell.use == use)


def most_to_take(position: Position, from_ms: int) -> int:
    """How many machines can be taken for good from then on without breaking what is signed."""
    fits, breaks = 0, machines_over_time(position).least(from_ms) + 1
    while breaks - fits > 1:
        tried = (fits + breaks) // 2
        if worsened(position, with_taken(position, Taken(tried, from_ms)), from_ms):
            breaks = tried
        else:
            fits = tried
    return fits


def assured(pool: PoolOutlook, contract: Contract, now_ms: int) -> Assured:
    """Of a contract that is signed."""
    until_ms = min(contract.effective_end_ms, end_by_notice(contract.terms, "tenant", now_ms))
    from_ms = max(now_ms, contract.terms.starts_ms)
    holding = Holding.of(contract)
    capacity = sum(
        span.value * max(0, min(span.until_ms, until_ms) - max(span.from_ms, from_ms))
        for span in holding.spans()
    )
    name = contract.contract_id
    price = pool.capacity_price.get(name, 0)
    asked = pool.held.get(name)
    by_tokens = asked.units * asked.earned / 1000 if asked is not None else 0
    return Assured(
        contract=name, until_ms=until_ms, capacity=capacity, revenue=round(capacity * (price + by_tokens))
    )
