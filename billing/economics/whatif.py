"""What would be otherwise if prices, work, notices or the use of machines changed. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from billing.contracts.position import Taken
from billing.contracts.timeline import FOREVER_MS
from billing.economics.expected import AS_OF_LATE, Demand, PoolOutlook, expected, with_end
from billing.economics.figures import Figures
from billing.economics.machine_time import Away
from billing.economics.months import Cell, share_out
from billing.reclaims.outlook import quarter_of
from billing.refusals import Conflict

# By quarter and pool.
Outcome = Mapping[tuple[str, str, Cell], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Machines of a pool get another use in [from, until). `from_use` None: those that no reclaim has;
    `to_use` None: back to these.
    """

    pool: str
    instances: int
    from_use: str | None
    to_use: str | None
    from_ms: int
    until_ms: int = FOREVER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A contract that ends then, if it does not end before."""

    contract: str
    ends_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All that would be otherwise."""

    demand: Demand = AS_OF_LATE
    moves: tuple[Move, ...] = ()
    endings: tuple[Ending, ...] = ()


def outcome(
    outlooks: Mapping[str, PoolOutlook],
    edges_ms: Sequence[int],
    changes: Changes = Changes(),
) -> Outcome:
    """What is expected in each of the periods between the edges, none longer than a quarter. Raises Conflict
    for machines that do not exist.
    """
    found: defaultdict[tuple[str, str, Cell], Figures] = defaultdict(Figures)
    for name, pool in outlooks.items():
        changed = _changed(pool, changes)
        for from_ms, until_ms in pairwise(edges_ms):
            month = expected(changed, from_ms, until_ms, changes.demand)
            listed = expected(pool, from_ms, until_ms).list_price
            for cell, figures in share_out(month, listed).items():
                found[quarter_of(from_ms), name, cell] += figures
    return found


def _changed(pool: PoolOutlook, changes: Changes) -> PoolOutlook:
    position, away = pool.position, list(pool.history.away)
    for ending in changes.endings:
        position = with_end(position, ending.contract, ending.ends_ms)
    for move in changes.moves:
        if move.pool != pool.history.pool:
            continue
        span = {"from_ms": move.from_ms, "until_ms": move.until_ms}
        if move.from_use is not None:
            away.append(Away(use=move.from_use, instances=-move.instances, **span))
        if move.to_use is not None:
            away.append(Away(use=move.to_use, instances=move.instances, **span))
        gone = (move.to_use is not None) - (move.from_use is not None)
        if gone:
            moved = Taken(gone * move.instances, move.from_ms, move.until_ms)
            position = replace(position, taken=(*position.taken, moved))
    _check_there(pool, away)
    return replace(pool, position=position, history=replace(pool.history, away=tuple(away)))


def _check_there(pool: PoolOutlook, away: Sequence[Away]) -> None:
    """Raises Conflict if a use would have fewer than no machines at some moment."""
    known = pool.history.away
    for at_ms in sorted({each.from_ms for each in away} | {each.until_ms for each in away}):
        uses: defaultdict[str, int] = defaultdict(int)
        for each in away:
            uses[each.use] += each.instances if each.from_ms <= at_ms < each.until_ms else 0
        before = sum(each.instances for each in known if each.from_ms <= at_ms < each.until_ms)
        machines = max(before, pool.history.machines_at(at_ms))
        if min(uses.values(), default=0) < 0 or sum(uses.values()) > machines:
            raise Conflict(
                f"Pool {pool.history.pool!r} does not have so many machines in that use then.",
                param="moves",
                code="not_so_many",
            )


def by(found: Outcome, *words: str) -> dict[tuple[str, ...], Figures]:
    """Added up by some of `quarter`, `pool`, `use` and `contract`."""
    groups: defaultdict[tuple[str, ...], Figures] = defaultdict(Figures)
    for (quarter, pool, cell), figures in found.items():
        names = {"quarter": quarter, "pool": pool, "use": cell.use, "contract": cell.contract}
        groups[tuple(names[word] for word in words)] += figures
    return dict(groups)
