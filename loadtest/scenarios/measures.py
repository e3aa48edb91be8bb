"""What records add up to: work over time, who was backlogged when, differences of service, and a scheduler's
bound on them. Pure.

Work is in work units: uncached input counts with the first token, output as it arrives.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from loadtest.quantiles import quantile_ms
from loadtest.scenarios.record import Ended, Record
from loadtest.scenarios.speed import EngineSpeed, Speed


def steps(record: Record, speed: Speed) -> list[tuple[float, float]]:
    """(time, work done at that time) of one request."""
    if record.first_s is None:
        return []
    done = [(record.first_s, speed.units(record.prompt - record.cached, 0))]
    before = 0
    for at, tokens in record.marks:
        done.append((at, speed.units(0, tokens - before)))
        before = tokens
    return done


def work_between(records: Iterable[Record], speed: Speed, begin_s: float, end_s: float) -> float:
    """Work units done in [begin, end)."""
    return sum(units for record in records for at, units in steps(record, speed) if begin_s <= at < end_s)


def accumulated(records: Iterable[Record], speed: EngineSpeed, grid: Sequence[float]) -> list[float]:
    """Work done until each time of the grid, that time included; the grid is in order."""
    added = [0.0] * (len(grid) + 1)
    for record in records:
        for at, units in steps(record, speed):
            added[bisect_left(grid, at)] += units
    return list(accumulate(added))[: len(grid)]


def backlogged(records: Iterable[Record], grid: Sequence[float], slack_s: float) -> list[bool]:
    """At which times somebody had waited for a first token for longer than `slack_s`, which is what an
    idle engine takes.
    """
    change = [0] * (len(grid) + 1)
    for record in records:
        begin, end = bisect_left(grid, record.sent_s + slack_s), bisect_left(grid, record.waiting_until_s)
        if begin < end:
            change[begin] += 1
            change[end] -= 1
    return [waiting > 0 for waiting in accumulate(change[: len(grid)])]


def spans(flags: Sequence[bool], points_min: int) -> list[tuple[int, int]]:
    """[begin, end) of every unbroken run that has at least so many points."""
    found, begin = [], None
    for position, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = position
        elif not flag and begin is not None:
            if position - begin >= points_min:
                found.append((begin, position))
            begin = None
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """The greatest |W_f(t1, t2) - W_g(t1, t2)| over all t1 < t2 in which both were backlogged, and for how
    long they were.
    """

    units: float
    backlogged_s: float


def service_difference(
    mine: Sequence[float],
    other: Sequence[float],
    both: Sequence[bool],
    step_s: float,
    span_s_min: float = 1.0,
) -> Difference:
    """Of two accumulated services on one grid. Within a span it is the range of their difference."""
    greatest, length = 0.0, 0.0
    for begin, end in spans(both, max(2, round(span_s_min / step_s))):
        apart = [mine[position] - other[position] for position in range(begin, end)]
        greatest = max(greatest, max(apart) - min(apart))
        length += (end - begin - 1) * step_s
    return Difference(greatest, length)


def service_bound(
    speed: EngineSpeed, sequences: int, input_max: int, output_max: int, weight: float = 1.0
) -> float:
    """What `service_difference` must not exceed between two backlogged tenants, in work units.

    The theorem (arXiv 2401.00588, 4.4) is |W_f - W_g| <= 2U with U = max(w_p L_input, w_q M), M the tokens
    that fit into the running batch. It holds because only the least counter is admitted: at the last
    admission of f it had at most what g had, and since then it can have gained its own admission, w_p
    L_input, and what its sequences in flight produce. We bound those not by the engine's memory but by the
    room that the gateway gives: `sequences`, each with at most `output_max` tokens. Input and output are
    added, where the paper's M holds both; as w_p <= w_q this is never more than the paper's U with M =
    sequences * (input_max + output_max). Output that is charged late, by checkpoints, is that of sequences in
    flight, and so within it. A heavier tenant's counter moves by less: divided by the weight.
    """
    return 2 * (speed.units(input_max, 0) + sequences * speed.units(0, output_max)) / weight


def ttft_ms(records: Iterable[Record], share: float) -> float | None:
    """A quantile of the time to first token, of those that got one."""
    return quantile_ms([record.ttft_s for record in records if record.ttft_s is not None], share)


def due(records: Iterable[Record], begin_s: float, end_s: float) -> list[Record]:
    """Those that were due in [begin, end)."""
    return [record for record in records if begin_s <= record.arrival.at_s < end_s]


def refusals(records: Iterable[Record]) -> int:
    """How many got an HTTP error."""
    return sum(record.ended is Ended.REFUSED for record in records)


def passed_over(records: Iterable[Record], margin_s: float = 0.25, waited_s_min: float = 1.0) -> int:
    """How many of one tenant's requests of one tier were refused after a wait while one sent later had been
    given a place already.

    A tenant's requests wait in the order of their arrival, so there is none, over any number of gateways. The
    margin is for the way there.
    """
    over, earliest_s = 0, [float("inf")]
    ordered = sorted(records, key=lambda record: record.sent_s)
    sent = [record.sent_s for record in ordered]
    for record in reversed(ordered):
        earliest_s.append(
            min(earliest_s[-1], record.waiting_until_s if record.first_s is not None else float("inf"))
        )
    earliest_s.reverse()
    for record in ordered:
        if (
            record.ended is Ended.REFUSED
            and record.end_s is not None
            and record.end_s - record.sent_s >= waited_s_min
        ):
            over += earliest_s[bisect_left(sent, record.sent_s + margin_s)] < record.end_s - margin_s
    return over


def codes(records: Iterable[Record]) -> dict[str, int]:
    """How often each way of not being served was met, in words."""
    counted: dict[str, int] = {}
    for record in records:
        if record.ended is not Ended.COMPLETE:
            word = " ".join(
                str(part) for part in (record.ended, record.status, record.code) if part is not None
            )
            counted[word] = counted.get(word, 0) + 1
    return counted


def reached_after(
    records: Iterable[Record],
    speed: EngineSpeed,
    rate_units_s: float,
    begin_s: float,
    end_s: float,
    window_s: float,
) -> float | None:
    """Seconds after `begin_s` until the beginning of the first window in which work was done at this rate;
    None if there is none.
    """
    grid = [begin_s + 0.1 * number for number in range(round((end_s - begin_s) / 0.1) + 1)]
    done = accumulated(records, speed, grid)
    width = round(window_s / 0.1)
    for position in range(len(grid) - width):
        if done[position + width] - done[position] >= rate_units_s * window_s:
            return 0.1 * position
    return None


def by_tenant(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(record.arrival.tenant, []).append(record)
    return parts
