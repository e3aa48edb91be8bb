"""The suites of "Fairness in Serving Large Language Models" (arXiv 2401.00588, section 5): overload, on/off,
Poisson with short and long requests, increase, and distribution shift, in the units of a pool of ours instead
of requests a minute on one card.

Each is held against the paper's bound on the difference of service between tenants that are backlogged
together (`measures.service_bound`). The arrivals are pure; all tenants weigh the same, and are on demand at
two gateways.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from loadtest.scenarios.arrivals import Arrival, Shape, even, increasing, on_off, poisson, requests, together
from loadtest.scenarios.measures import (
    accumulated,
    backlogged,
    by_tenant,
    codes,
    passed_over,
    service_bound,
    service_difference,
    ttft_ms,
    work_between,
)
from loadtest.scenarios.play import WARM_UP_S, conditions, play
from loadtest.scenarios.record import Record
from loadtest.scenarios.result import Result, Verdict, at_least, at_most
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import running

SPEED = EngineSpeed()
MIDDLE = Shape(100, 100)
SHORT = Shape(64, 32)
LONG = Shape(256, 200)
STEP_S = 0.1
# An idle pool gives the first token within a few steps; who waits longer than this waits for room.
SLACK_S = 0.25


def rate(share: float, shape: Shape) -> float:
    """Requests a second that are worth so much of the pool."""
    return share * SPEED.capacity_units_s / SPEED.units(shape.input_tokens, shape.output_tokens)


def overload(end_s: float) -> list[Arrival]:
    """Two tenants, both beyond their half, one twice as far."""
    return together(
        _asks("steady", even(rate(0.75, MIDDLE), 0, end_s), MIDDLE),
        _asks("greedy", even(rate(1.5, MIDDLE), 0, end_s), MIDDLE),
    )


def on_and_off(end_s: float) -> list[Arrival]:
    """One comes and goes, and wants more than its half while it is there; idling must earn it no credit."""
    return together(
        _asks("on-off", on_off(even(rate(1.0, MIDDLE), 0, end_s), 10, 10), MIDDLE),
        _asks("steady", even(rate(1.2, MIDDLE), 0, end_s), MIDDLE),
    )


def short_and_long(end_s: float) -> list[Arrival]:
    """Random arrivals; one sends many short requests, one few long ones, of the same worth."""
    return together(
        _asks("short", poisson(rate(1.0, SHORT), 0, end_s, 1), SHORT),
        _asks("long", poisson(rate(1.0, LONG), 0, end_s, 2), LONG),
    )


def increase(end_s: float) -> list[Arrival]:
    """One stays below its third, one always wants more, and one grows from nothing to twice the pool: the
    first must not feel it.
    """
    return together(
        _asks("modest", even(rate(0.25, MIDDLE), 0, end_s), MIDDLE),
        _asks("steady", even(rate(0.75, MIDDLE), 0, end_s), MIDDLE),
        _asks("growing", increasing(0.1, rate(2.0, MIDDLE), 0, end_s), MIDDLE),
    )


def distribution_shift(end_s: float) -> list[Arrival]:
    """In thirds: one comes and goes beside a steady one; both at random, short and long; both far beyond
    their half.
    """
    first, second = end_s / 3, 2 * end_s / 3
    return together(
        _asks("one", on_off(even(rate(1.0, MIDDLE), 0, first), 5, 5), MIDDLE),
        _asks("two", even(rate(1.0, MIDDLE), 0, first), MIDDLE),
        _asks("one", poisson(rate(0.75, SHORT), first, second, 3), SHORT),
        _asks("two", poisson(rate(0.75, LONG), first, second, 4), LONG),
        _asks("one", even(rate(1.5, MIDDLE), second, end_s), MIDDLE),
        _asks("two", even(rate(0.75, MIDDLE), second, end_s), MIDDLE),
    )


@dataclass(frozen=True, slots=True)
class Suite:
    """A workload. `modest`: a tenant that stays below its share, and so must get all that it asks for."""

    name: str
    arrivals: Callable[[float], list[Arrival]]
    modest: str | None = None


SUITES = (
    Suite("vtc-overload", overload),
    Suite("vtc-on-off", on_and_off),
    Suite("vtc-short-long", short_and_long),
    Suite("vtc-increase", increase, modest="modest"),
    Suite("vtc-shift", distribution_shift),
)


def run(suite: Suite, seconds: float) -> list[Result]:
    """One suite."""
    end_s = WARM_UP_S + seconds
    arrivals = suite.arrivals(end_s)
    with running(SPEED) as stack:
        for name in sorted({arrival.tenant for arrival in arrivals}):
            stack.add_tenant(name)
        records = play(stack, arrivals)
        return [judge(suite, records, end_s, stack.sequences)]


def judge(suite: Suite, records: list[Record], end_s: float, sequences: int) -> Result:
    """All pairs over the whole time in which requests came."""
    parts = by_tenant(records)
    grid = [STEP_S * number for number in range(int(end_s / STEP_S) + 1)]
    service = {name: accumulated(part, SPEED, grid) for name, part in parts.items()}
    waits = {name: backlogged(part, grid, SLACK_S) for name, part in parts.items()}
    pairs = {}
    for mine, other in combinations(sorted(parts), 2):
        both = [a and b for a, b in zip(waits[mine], waits[other], strict=True)]
        pairs[f"{mine}/{other}"] = service_difference(service[mine], service[other], both, STEP_S)
    shapes = [record.arrival.shape for record in records]
    bound = service_bound(
        SPEED,
        sequences,
        max(shape.input_tokens for shape in shapes),
        max(shape.output_tokens for shape in shapes),
    )
    verdicts = [
        at_most(
            "greatest difference of service between backlogged tenants, units",
            max(pair.units for pair in pairs.values()),
            bound,
        ),
        # Without a backlog of both the difference is 0 and says nothing.
        at_least("seconds in which two were backlogged", max(pair.backlogged_s for pair in pairs.values()),
        0.15 * end_s),
    ]  # fmt: skip
    verdicts.append(
        at_most(
            "requests refused while a later one of the same tenant had a place",
            sum(map(passed_over, parts.values())),
            0,
        )
    )
    if suite.modest is not None:
        verdicts.append(_modest(parts[suite.modest], end_s))
    seconds = end_s - WARM_UP_S
    return Result(suite.name, verdicts, {
        "pairs": {name: f"{pair.units:,.0f} in {pair.backlogged_s:.0f} s" for name, pair in pairs.items()},
        "units a second": {name: work_between(part, SPEED, WARM_UP_S, end_s) / seconds for name,
        part in parts.items()},
        "p50 TTFT, ms": {name: ttft_ms(part, 0.5) for name, part in parts.items()},
        "not served": {name: codes(part) for name, part in parts.items()}, **conditions(records),
    })  # fmt: skip


def _modest(records: list[Record], end_s: float) -> Verdict:
    asked = SPEED.units(MIDDLE.input_tokens, MIDDLE.output_tokens) * len(records)
    return at_least(
        "work of the modest tenant / what it asks", work_between(records, SPEED, 0, end_s + 5) / asked, 0.95
    )


_asks = partial(requests, tier="default")
