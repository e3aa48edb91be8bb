"""Fairness: two tenants with weights 4 and 1 want more than there is, and each sends most of it where the
other one's weight would count.
"""

from loadtest.scenarios.arrivals import Arrival, Shape, poisson, requests, together
from loadtest.scenarios.measures import by_tenant, codes, passed_over, work_between
from loadtest.scenarios.play import WARM_UP_S, conditions, play
from loadtest.scenarios.record import Record
from loadtest.scenarios.result import Result, at_least, at_most, near
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import running

SPEED = EngineSpeed()
SHAPE = Shape(100, 100)
RATIO = 4
OFFERED_OF_POOL = 1.5
SKEW = 9


def load(end_s: float) -> list[Arrival]:
    """Each wants one and a half pools. At the first gateway nine of ten requests are the light tenant's, at
    the second the heavy one's: a gateway that divided its own half by itself would give them 1.6 to 1.
    """
    rate = OFFERED_OF_POOL * SPEED.capacity_units_s / SPEED.units(SHAPE.input_tokens, SHAPE.output_tokens)
    return together(
        requests("heavy", poisson(rate, 0, end_s, 1), SHAPE, tier="default", gateways=(1, SKEW)),
        requests("light", poisson(rate, 0, end_s, 2), SHAPE, tier="default", gateways=(SKEW, 1)),
    )


def run(seconds: float) -> list[Result]:
    """Both on demand."""
    end_s = WARM_UP_S + seconds
    with running(SPEED) as stack:
        stack.add_tenant("heavy", weight=RATIO)
        stack.add_tenant("light", weight=1)
        records = play(stack, load(end_s))
    return [judge(records, end_s)]


def judge(records: list[Record], end_s: float) -> Result:
    """Work done by the time that tokens arrived."""
    parts = by_tenant(records)
    seconds = end_s - WARM_UP_S
    rates = {name: work_between(part, SPEED, WARM_UP_S, end_s) / seconds for name, part in parts.items()}
    verdicts = [
        near("work of the heavy / of the light tenant",
        rates["heavy"] / rates["light"] if rates["light"] else None, RATIO, 0.1),
        at_least("utilisation of the pool", sum(rates.values()) / SPEED.capacity_units_s, 0.8),
        at_most("requests refused while a later one of the same tenant had a place", sum(map(passed_over,
        parts.values())), 0),
    ]  # fmt: skip
    return Result("fairness", verdicts, {
        "units a second": rates, "not served": {name: codes(part) for name, part in parts.items()},
        **conditions(records),
    })  # fmt: skip
