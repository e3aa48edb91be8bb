"""Guarantee: beside a crowd that wants three times what the pool has, a tenant within its contract is
served as if it were alone.
"""

from loadtest.scenarios.arrivals import Arrival, Shape, even, poisson, requests, together
from loadtest.scenarios.here import here
from loadtest.scenarios.measures import by_tenant, codes, due, refusals, ttft_ms, work_between
from loadtest.scenarios.play import WARM_UP_S, conditions, play
from loadtest.scenarios.record import Record
from loadtest.scenarios.result import Result, at_least, at_most
from loadtest.scenarios.speed import EngineSpeed, Speed
from loadtest.scenarios.stack import running

SPEED = EngineSpeed()
CONTRACT_SHARE = 0.3
CONTRACT_UNITS_S = CONTRACT_SHARE * SPEED.capacity_units_s
USED = 0.95
OWNER = Shape(100, 60)
CROWD = Shape(100, 100)
VARY = 0.5
TTFT_RATIO_MAX = 1.5
SCATTER_MAX = 2.0
HERE_OWNER = Shape(60, 16)
HERE_CROWD = Shape(60, 48)
HERE_PATIENCE_S = 45.0


def owner(
    begin_s: float,
    end_s: float,
    contract_units_s: float = CONTRACT_UNITS_S,
    shape: Shape = OWNER,
    speed: Speed = SPEED,
    input_tokens: float | None = None,
) -> list[Arrival]:
    """At 95 % of its units, evenly: a bucket of one second is full at 95 % of random arrivals, and a contract
    promises a rate. `input_tokens`: what the engine's tokenizer makes of a prompt of this shape, where that
    is another number.
    """
    rate = USED * contract_units_s / speed.units(input_tokens or shape.input_tokens, shape.output_tokens)
    return requests("owner", even(rate, begin_s, end_s), shape)


def crowd(begin_s: float, end_s: float, shape: Shape = CROWD, speed: Speed = SPEED) -> list[Arrival]:
    """Three times the pool, at random: twice on demand, by two tenants, and once flex."""
    rate = speed.capacity_units_s / speed.units(shape.input_tokens, shape.output_tokens)
    return together(
        requests("one", poisson(rate, begin_s, end_s, 1), shape, tier="default", vary=VARY),
        requests("two", poisson(rate, begin_s, end_s, 2), shape, tier="default", vary=VARY),
        requests("flex", poisson(rate, begin_s, end_s, 3), shape, tier="flex", vary=VARY),
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
    return [judge("guarantee", alone, among, end_s, SPEED)]


def run_here(seconds: float) -> list[Result]:
    """The same on what runs here, by its own calibration, with requests of a size that a CPU serves some
    of in a minute.
    """
    end_s = WARM_UP_S + seconds
    with here() as stack:
        for name in ("owner", "one", "two", "flex"):
            stack.add_tenant(name)
        speed = stack.speed()
        contract_units_s = CONTRACT_SHARE * speed.capacity_units_s
        stack.sign("owner", contract_units_s)
        wanted = owner(0, end_s, contract_units_s, HERE_OWNER, speed, stack.tokens_of("owner", HERE_OWNER))
        alone = due(play(stack, wanted, patience_s=HERE_PATIENCE_S), WARM_UP_S, end_s)
        among = play(stack, together(wanted, crowd(0, end_s, HERE_CROWD, speed)), patience_s=HERE_PATIENCE_S)
    return [judge("guarantee-here", alone, among, end_s, speed)]


def judge(name: str, alone: list[Record], everyone: list[Record], end_s: float, speed: Speed) -> Result:
    """The owner's two halves against each other."""
    parts = by_tenant(everyone)
    among = due(parts["owner"], WARM_UP_S, end_s)
    middle, before, beside = ttft_ms(alone, 0.5), ttft_ms(alone, 0.99), ttft_ms(among, 0.99)
    outside = sum(record.work_class != "reserved" for record in [*alone, *among] if record.status == 200)
    busy = work_between(everyone, speed, WARM_UP_S, end_s) / (speed.capacity_units_s * (end_s - WARM_UP_S))
    verdicts = [
        at_most("owner's refusals", refusals(alone) + refusals(among), 0),
        at_most("owner's requests in another class", outside, 0),
        at_most(
            "owner's p99 TTFT among the crowd / alone",
            beside / before if before and beside else None,
            TTFT_RATIO_MAX,
        ),
        at_least("utilisation of the pool", busy, 0.8),
        # Nobody is in its way then: what scatters is the machine, and a ratio to that would flatter.
        at_most(
            "owner's p99 / p50 TTFT alone; above, this machine is too busy to tell",
            before / middle if before and middle else None,
            SCATTER_MAX,
        ),
    ]
    return Result(name, verdicts, {
        "owner's TTFT alone, ms": {"p50": middle, "p99": before},
        "owner's TTFT among, ms": {"p50": ttft_ms(among, 0.5), "p99": beside},
        "crowd not served": {each: codes(parts[each]) for each in ("one", "two", "flex")},
        **conditions(everyone),
    })  # fmt: skip
