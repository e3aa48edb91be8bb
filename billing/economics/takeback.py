"""What of a pool's machines can be taken back for other uses, by when and for how much. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from billing.contracts.position import Holding, Position, Taken, worsened
from billing.contracts.terms import Contract, end_by_notice
from billing.economics.expected import PoolOutlook, expected, with_end
from billing.economics.machine_time import Away, machine_time
from billing.economics.months import paid
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
    before = _revenue(pool, edges_ms)
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
    pool: PoolOutlook, at_ms: int, ends: Mapping[str, int], edges_ms: Sequence[int], before: int
) -> TakeBack:
    position = pool.position
    for name, ends_ms in ends.items():
        position = with_end(position, name, ends_ms)
    machines = most_to_take(position, at_ms)
    after = replace(pool, position=with_taken(position, Taken(machines, at_ms)))
    gone = replace(pool.history, away=[Away(use="idle", instances=machines, from_ms=at_ms)])
    moved = [machine_time(gone, from_ms, until_ms)[1] for from_ms, until_ms in pairwise(edges_ms)]
    unknown = any(time.cost_unknown_ms for times in moved for time in times.values())
    return TakeBack(
        from_ms=at_ms,
        machines=machines,
        notices=tuple(sorted(ends)),
        lost=before - _revenue(after, edges_ms),
        cost=None if unknown else sum(sum(each.values()) for times in moved for each in paid(times)),
    )


def _revenue(pool: PoolOutlook, edges_ms: Sequence[int]) -> int:
    """What is expected, in pico-dollars."""
    months = [expected(pool, from_ms, until_ms) for from_ms, until_ms in pairwise(edges_ms)]
    return sum(
        sum(each.revenue for each in month.used)
        + sum(each.capacity_picousd - each.credits for each in month.held)
        for month in months
    )


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
    rate = pool.capacity.get(name)
    price = 0 if rate is None else rate.price
    asked = pool.held.get(name)
    by_tokens = asked.units * asked.earned / 1000 if asked is not None else 0
    return Assured(
        contract=name, until_ms=until_ms, capacity=capacity, revenue=round(capacity * (price + by_tokens))
    )
