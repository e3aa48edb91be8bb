"""What contracts lack while a reclaim cuts them, per contract and second: the basis of a credit. It owns the
rows of `contract_shortfall`.

Nothing is accumulated: each second is computed from what was signed, present and taken then. So missed
seconds are filled in later, and writing one again changes nothing. Fractions of a milliunit are rounded up,
once per second and contract.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection, func, select

from billing.catalogue import pools
from billing.contracts import store as contracts
from billing.contracts.commitments import read_position
from billing.contracts.position import Holding, Position
from billing.contracts.timeline import Span, Timeline
from billing.ledger.bulk_insert import insert_rows
from billing.reclaims import store
from billing.reclaims.cuts import cut_pro_rata, shortage_by_reclaims
from billing.reclaims.store import Reclaim
from billing.schema.capacity import calibration, contract, contract_shortfall

SECOND_MS: Final = 1_000
# Seconds filled in per transaction after a pause, so that none grows without bound.
SECONDS_MAX: Final = 3_600


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What one contract lacked in one second, in mu."""

    contract_id: str
    second_ms: int
    assigned_mu: int
    cut_mu: int
    reclaim_id: str


def pools_cut(connection: Connection, now_ms: int) -> list[str]:
    """Pools whose machines a reclaim has that may break contracts."""
    breaking = store.list_all(connection, states=store.TAKING, breaks=True)
    return sorted({each.pool for each in breaking if each.by_ms <= now_ms})


def record(connection: Connection, pool: str, now_ms: int, *, last: bool = False) -> bool:
    """Write every full second that has passed and is not written yet. `last`: also the part of the current
    one, because the cut ends now. Returns True if there is more to fill in.
    """
    begun = store.list_all(connection, pool=pool, states=store.TAKING, breaks=True)
    breaking = [each for each in begun if each.by_ms < now_ms]
    if not breaking:
        return False
    from_ms = _next_second(connection, pool, min(each.by_ms for each in breaking))
    until_ms = now_ms if last else now_ms - now_ms % SECOND_MS
    position = replace(
        read_position(connection, pool, from_ms),
        holdings=tuple(
            Holding.of(each)
            for each in contracts.list_all(
                connection, pool=pool, states=(*contracts.BINDING, "ended"), ends_after_ms=from_ms
            )
        ),
    )
    cut = _cut_over_time(connection, position, breaking, from_ms, until_ms)
    seconds = sum(span.until_ms - span.from_ms for span in cut if span.value) // SECOND_MS
    if seconds > SECONDS_MAX and not last:
        until_ms = _after(cut, SECONDS_MAX)
        cut = [
            replace(span, until_ms=min(span.until_ms, until_ms)) for span in cut if span.from_ms < until_ms
        ]
    rows = shortfalls(position.holdings, cut, breaking)
    if rows:
        insert_rows(connection, contract_shortfall, [_row(each) for each in rows], ignore_known=True)
    return seconds > SECONDS_MAX and not last


def shortfalls(
    holdings: Sequence[Holding], cut: Sequence[Span], breaking: Sequence[Reclaim]
) -> list[Shortfall]:
    """Each contract and second of `cut`, which gives without a gap how much is cut of all contracts together.
    Pure.
    """
    lines = {held.contract_id: Timeline.total(held.spans()) for held in holdings}
    moments = sorted({at_ms for line in lines.values() for at_ms, _ in line.points})
    assigned: defaultdict[tuple[str, int], int] = defaultdict(int)
    lost: defaultdict[tuple[str, int], int] = defaultdict(int)
    for part in _split(cut, moments):
        rates = {name: rate for name, line in lines.items() if (rate := line.at(part.from_ms))}
        cuts = cut_pro_rata(rates, part.value)
        for second_ms, length_ms in _seconds(part, all_of_it=part.value > 0):
            for name, rate in rates.items():
                assigned[name, second_ms] += rate * length_ms
                lost[name, second_ms] += cuts[name] * length_ms
    return [
        Shortfall(name, second_ms, _up(assigned[name, second_ms]), _up(mu_ms), _cause(breaking, second_ms))
        for (name, second_ms), mu_ms in sorted(lost.items())
        if mu_ms
    ]


def _next_second(connection: Connection, pool: str, first_ms: int) -> int:
    # By contract, which is how the index of the rows begins: there will be many rows.
    newest = (
        select(func.max(contract_shortfall.c.second_ms))
        .where(contract_shortfall.c.contract_id == contract.c.contract_id)
        .scalar_subquery()
    )
    written = connection.execute(select(func.max(newest)).where(contract.c.pool == pool)).scalar_one()
    begins_ms = first_ms - first_ms % SECOND_MS
    return begins_ms if written is None else max(begins_ms, written + SECOND_MS)


def _cut_over_time(
    connection: Connection, position: Position, breaking: Sequence[Reclaim], from_ms: int, until_ms: int
) -> list[Span]:
    """How much is cut at each moment of [from, until), by the size and the calibration that the pool had
    then.
    """
    sizes = [*pools.past(connection, position.pool), (until_ms, pools.find(connection, position.pool))]
    measured = measured_over_time(connection, position.pool)
    edges = {ends_ms for ends_ms, _ in sizes} | {starts_ms for starts_ms, _ in measured}
    moments = [
        from_ms,
        *sorted(at_ms for at_ms in edges if from_ms < at_ms < until_ms),
        max(from_ms, until_ms),
    ]
    cut: list[Span] = []
    for starts_ms, ends_ms in pairwise(moments):
        was = next(pool for held_until_ms, pool in sizes if starts_ms < held_until_ms)
        capacity_mu_s = next((each for at_ms, each in reversed(measured) if at_ms <= starts_ms), None)
        then = replace(
            position,
            instances=was.instances,
            headroom_permille=was.headroom_permille,
            set_aside_mu_s=was.set_aside_mu_s,
            capacity_mu_s=capacity_mu_s,
        )
        cut += shortage_by_reclaims(then, breaking).spans(starts_ms, ends_ms)
    return cut


def measured_over_time(connection: Connection, pool: str) -> list[tuple[int, int]]:
    """What one instance could do, from each moment on. The first measurement is assumed to have held before
    as well.
    """
    rows = connection.execute(
        select(calibration.c.created_ms, calibration.c.capacity_mu_s)
        .where(calibration.c.pool == pool)
        .order_by(calibration.c.created_ms, calibration.c.calibration_id)
    ).all()
    return [(0 if index == 0 else row.created_ms, row.capacity_mu_s) for index, row in enumerate(rows)]


def _split(spans: Sequence[Span], moments: Sequence[int]) -> Iterator[Span]:
    """The same spans, also split at these moments."""
    for span in spans:
        edges = [
            span.from_ms,
            *(at_ms for at_ms in moments if span.from_ms < at_ms < span.until_ms),
            span.until_ms,
        ]
        for start_ms, end_ms in pairwise(edges):
            yield Span(start_ms, end_ms, span.value)


def _seconds(span: Span, *, all_of_it: bool) -> Iterator[tuple[int, int]]:
    """The seconds that a span touches, and for how many ms; without a cut only the first and the last, which
    may share a second with a cut.
    """
    first_ms, last_ms = (
        span.from_ms - span.from_ms % SECOND_MS,
        (span.until_ms - 1) - (span.until_ms - 1) % SECOND_MS,
    )
    starts = range(first_ms, last_ms + 1, SECOND_MS) if all_of_it else sorted({first_ms, last_ms})
    for second_ms in starts:
        yield second_ms, min(span.until_ms, second_ms + SECOND_MS) - max(span.from_ms, second_ms)


def _after(cut: Sequence[Span], seconds: int) -> int:
    """When so many seconds have been cut, to the whole second."""
    left_ms = seconds * SECOND_MS
    for span in cut:
        length_ms = span.until_ms - span.from_ms
        if span.value and length_ms >= left_ms:
            end_ms = span.from_ms + left_ms
            return end_ms - end_ms % SECOND_MS
        left_ms -= length_ms if span.value else 0
    raise AssertionError("less was cut than was counted")


def _cause(breaking: Sequence[Reclaim], second_ms: int) -> str:
    """The cause that came last."""
    begun = [each for each in breaking if each.by_ms < second_ms + SECOND_MS]
    return max(begun, key=lambda each: (each.by_ms, each.reclaim_id)).reclaim_id


def _up(mu_ms: int) -> int:
    return -(-mu_ms // 1000)


def _row(each: Shortfall) -> dict[str, Any]:
    return {
        "contract_id": each.contract_id, "second_ms": each.second_ms, "assigned_mu": each.assigned_mu,
        "cut_mu": each.cut_mu, "reclaim_id": each.reclaim_id,
    }  # fmt: skip
