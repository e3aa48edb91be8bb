"""Lending: what an owner does not use works for others, and is back within two seconds when the owner is."""

from loadtest.scenarios.arrivals import Arrival, Shape, even, poisson, requests, together
from loadtest.scenarios.measures import by_tenant, codes, due, reached_after, refusals, ttft_ms, work_between
from loadtest.scenarios.play import WARM_UP_S, conditions, play
from loadtest.scenarios.record import Ended, Record
from loadtest.scenarios.result import Result, at_least, at_most
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import running

SPEED = EngineSpeed()
CONTRACT_UNITS_S = 0.5 * SPEED.capacity_units_s
USED = 0.95
OWNER = Shape(100, 60)
# Two seconds on average: of shorter streams the time between one's end and the next one's beginning is a
# greater part.
CROWD = Shape(100, 200)
VARY = 0.5
BACK_S = 15.0
BACK_WITHIN_S = 2.0


def load(idle_s: float) -> list[Arrival]:
    """On demand and flex want one and a half pools each, all the time; the owner comes back after its idle
    time.
    """
    end_s = WARM_UP_S + idle_s + BACK_S
    crowd_rate = 1.5 * SPEED.capacity_units_s / SPEED.units(CROWD.input_tokens, CROWD.output_tokens)
    rate = USED * CONTRACT_UNITS_S / SPEED.units(OWNER.input_tokens, OWNER.output_tokens)
    return together(
        requests("one", poisson(crowd_rate, 0, end_s, 1), CROWD, tier="default", vary=VARY),
        requests("flex", poisson(crowd_rate, 0, end_s, 2), CROWD, tier="flex", vary=VARY),
        requests("owner", even(rate, WARM_UP_S + idle_s, end_s), OWNER),
    )


def run(seconds: float) -> list[Result]:
    """`seconds` is how long the owner is away."""
    with running(SPEED) as stack:
        for name in ("owner", "one", "flex"):
            stack.add_tenant(name)
        stack.sign("owner", CONTRACT_UNITS_S)
        records = play(stack, load(seconds))
    return [judge(records, seconds)]


def judge(records: list[Record], idle_s: float) -> Result:
    """Before and after the return."""
    parts = by_tenant(records)
    back_s = WARM_UP_S + idle_s
    end_s = back_s + BACK_S
    lent = work_between(records, SPEED, WARM_UP_S, back_s) / (SPEED.capacity_units_s * idle_s)
    asked = USED * CONTRACT_UNITS_S
    # A stream takes most of a second, so a second of work is seen in full only a second after it was
    # admitted.
    took = reached_after(parts["owner"], SPEED, 0.9 * asked, back_s, end_s, 1.0)
    steady_s = back_s + BACK_WITHIN_S
    steady = work_between(parts["owner"], SPEED, steady_s, end_s) / (asked * (end_s - steady_s))
    early = due(parts["owner"], back_s, back_s + BACK_WITHIN_S)
    verdicts = [
        at_least("utilisation of the pool by others while the owner is away", lent, 0.95),
        at_most("seconds until the owner works at 90 % of what it asks", took, BACK_WITHIN_S),
        at_least("owner's work from then on / what it asks", steady, 0.95),
        at_most("owner's refusals", refusals(parts["owner"]), 0),
    ]
    return Result("lending", verdicts, {
        "owner's TTFT in the first two seconds, ms": {"p50": ttft_ms(early, 0.5), "p99": ttft_ms(early,
        0.99)},
        "others cut": {name: sum(record.ended is Ended.CUT for record in parts[name]) for name in ("one",
        "flex")},
        "others not served": {name: codes(parts[name]) for name in ("one", "flex")}, **conditions(records),
    })  # fmt: skip
