"""The rule of no oversell once more, the slow and plain way: every instant looked at alone. Knows nothing
of timelines.
"""

from billing.contracts.position import Position
from billing.contracts.timeline import FOREVER_MS


def reserved_at(position: Position, moment_ms: int) -> int:
    """Σ of the last steps of those whose term holds this moment."""
    total = 0
    for held in position.holdings:
        if held.starts_ms <= moment_ms < held.ends_ms:
            total += [step.mu_s for step in held.steps if step.from_ms <= moment_ms][-1]
    return total


def held_at(position: Position, moment_ms: int) -> int:
    """The same with the bursts: what all of them at once ask of one second."""
    total = 0
    for held in position.holdings:
        if held.starts_ms <= moment_ms < held.ends_ms:
            rate = [step.mu_s for step in held.steps if step.from_ms <= moment_ms][-1]
            total += -(-rate * held.burst_ms // 1000)
    return total


def capacity_at(position: Position, moment_ms: int) -> int:
    """The formula, with what holds at this moment."""
    away = sum(each.instances for each in position.taken if each.from_ms <= moment_ms < each.until_ms)
    asked = [
        held.headroom_permille for held in position.holdings if held.starts_ms <= moment_ms < held.ends_ms
    ]
    kept = max([position.headroom_permille, *asked])
    ceiling = (position.instances - away) * (position.capacity_mu_s or 0) * (1000 - kept) // 1000
    return max(0, ceiling - position.set_aside_mu_s)


def moments_of(position: Position) -> list[int]:
    """Every moment at which something changes, and those just beside it."""
    edges = {
        edge
        for held in position.holdings
        for edge in (held.starts_ms, held.ends_ms, *(step.from_ms for step in held.steps))
    }
    edges |= {edge for each in position.taken for edge in (each.from_ms, each.until_ms)}
    beside = {moment for edge in edges for moment in (edge - 1, edge, edge + 1)}
    return sorted(moment for moment in beside if 0 <= moment < FOREVER_MS)
