"""Enforcement: who sends three times its contract, with overflow `reject`, gets its contract, over two
gateways.
"""

from loadtest.scenarios.arrivals import Arrival, Shape, even, requests
from loadtest.scenarios.measures import codes, work_between
from loadtest.scenarios.play import WARM_UP_S, conditions, play
from loadtest.scenarios.record import Ended, Record
from loadtest.scenarios.result import Result, at_least, at_most, near
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import running

SPEED = EngineSpeed()
CONTRACT_UNITS_S = 0.5 * SPEED.capacity_units_s
TIMES = 3.0
SHAPE = Shape(100, 40)
TOLERANCE = 0.02


def load(end_s: float) -> list[Arrival]:
    """Evenly, in turn at both gateways."""
    rate = TIMES * CONTRACT_UNITS_S / SPEED.units(SHAPE.input_tokens, SHAPE.output_tokens)
    return requests("greedy", even(rate, 0, end_s), SHAPE, tier="priority")


def run(seconds: float) -> list[Result]:
    """Nobody else is there: what is refused is refused by the contract alone."""
    end_s = WARM_UP_S + seconds
    with running(SPEED) as stack:
        stack.add_tenant("greedy")
        stack.sign("greedy", CONTRACT_UNITS_S)
        # Callers go on after the window, so that its end looks as its beginning does.
        records = play(stack, load(end_s + 2))
    return [judge(records, end_s)]


def judge(records: list[Record], end_s: float) -> Result:
    """Work done in the window, by when tokens arrived: requests that straddle its ends count with their
    part.
    """
    seconds = end_s - WARM_UP_S
    work = work_between(records, SPEED, WARM_UP_S, end_s)
    refused = [record for record in records if record.ended is Ended.REFUSED]
    told = sum(record.status == 429 and record.retry_after_ms is not None for record in refused)
    verdicts = [
        near("work units a second", work / seconds, CONTRACT_UNITS_S, TOLERANCE),
        at_least("refused, of all requests", len(refused) / len(records), 0.5),
        at_most("refused other than by 429 with retry-after-ms", len(refused) - told, 0),
        at_most("broken or cut", sum(record.ended in (Ended.BROKEN, Ended.CUT) for record in records), 0),
    ]
    per_gateway = {
        name: work_between([record for record in records if record.arrival.gateway == gateway], SPEED,
        WARM_UP_S, end_s) / seconds
        for gateway, name in enumerate(("first", "second"))
    }  # fmt: skip
    return Result("enforcement", verdicts, {
        "of the contract": work / seconds / CONTRACT_UNITS_S, "units a second by gateway": per_gateway,
        "not served": codes(records), **conditions(records),
    })  # fmt: skip
