"""Guarantee: beside a crowd that wants three times what the pool has, a tenant within its contract is served as if it were alone."""

from loadtest.scenarios.arrivals import Arrival, Shape, even, poisson, requests, together
from loadtest.scenarios.measures import by_tenant, codes, due, refusals, ttft_ms, work_between
from loadtest.scenarios.play import WARM_UP_S, conditions, play
from loadtest.scenarios.record import Record
from loadtest.scenarios.result import Result, at_least, at_most
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import running

SPEED = EngineSpeed()
CONTRACT_UNITS_S = 0.3 * SPEED.capacity_units_s
USED = 0.95
OWNER = Shape(100, 60)
CROWD = Shape(100, 100)
VARY = 0.5
TTFT_RATIO_MAX = 1.5
SCATTER_MAX = 2.0


def owner(begin_s: float, end_s: float) -> list[Arrival]:
    """At 95 % of its units, evenly: a bucket of one second is full at 95 % of random arrivals, and a contract promises a rate."""
    rate = USED * CONTRACT_UNITS_S / SPEED.units(OWNER.input_tokens, OWNER.output_tokens)
    return requests("owner", even(rate, begin_s, end_s), OWNER)


def crowd(begin_s: float, end_s: float) -> list[Arrival]:
    """Three times the pool, at random: twice on demand, by two tenants, and once flex."""
    rate = SPEED.capacity_units_s / SPEED.units(CROWD.input_tokens, CROWD.output_tokens)
    return together(
        requests("one", poisson(rate, begin_s, end_s, 1), CROWD, tier="default", vary=VARY),
        requests("two", poisson(rate, begin_s, end_s, 2), CROWD, tier="default", vary=VARY),
        requests("flex", poisson(rate, begin_s, end_s, 3), CROWD, tier="flex", vary=VARY),
    )


def run(seconds: float) -> list[Result]:
    """The owner alone, then among the crowd."""
    end_s = WARM_UP_S + seconds
    with running(SPEED) as stack:
        for name in ("owner", "one", "two", "flex"):
            stack.add_tenant(name)
        stack.sign("owner", CONTRACT_UNITS_S)
        alone = due(play(stack, owner(0, end_s)), WARM_UP_S, end_s)
        among = play(stack, together(owner(0, end_s), crowd(0, end_s)))
    return [judge(alone, among, end_s)]


def judge(alone: list[Record], everyone: list[Record], end_s: float) -> Result:
    """The owner's two halves against each other."""
    parts = by_tenant(everyone)
    among = due(parts["owner"], WARM_UP_S, end_s)
    middle, before, beside = ttft_ms(alone, 0.5), ttft_ms(alone, 0.99), ttft_ms(among, 0.99)
    outside = sum(record.work_class != "reserved" for record in [*alone, *among] if record.status == 200)
    busy = work_between(everyone, SPEED, WARM_UP_S, end_s) / (SPEED.capacity_units_s * (end_s - WARM_UP_S))
    verdicts = [
        at_most("owner's refusals", refusals(alone) + refusals(among), 0),
        at_most("owner's requests in another class", outside, 0),
        at_most(
            "owner's p99 TTFT among the crowd / alone", beside / before if before and beside else None, TTFT_RATIO_MAX
        ),
        at_least("utilisation of the pool", busy, 0.8),
        # Nobody is in its way then: what scatters is the machine, and a ratio to that would flatter.
        at_most(
            "owner's p99 / p50 TTFT alone; above, this machine is too busy to tell",
            before / middle if before and middle else None,
            SCATTER_MAX,
        ),
    ]
    return Result("guarantee", verdicts, {
        "owner's TTFT alone, ms": {"p50": middle, "p99": before}, "owner's TTFT among, ms": {"p50": ttft_ms(among, 0.5), "p99": beside},
        "crowd not served": {name: codes(parts[name]) for name in ("one", "two", "flex")}, **conditions(everyone),
    })  # fmt: skip
