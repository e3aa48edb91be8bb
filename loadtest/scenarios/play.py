"""One load against a running stack, and what says whether the machine that ran it was up to it."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import uvloop

from loadtest.quantiles import quantile_ms
from loadtest.scenarios.arrivals import Arrival
from loadtest.scenarios.client import Load
from loadtest.scenarios.here import Here
from loadtest.scenarios.record import Record
from loadtest.scenarios.stack import ScenarioStack

# What on demand may wait before it is refused, and a stream's length. Flex may wait longer: what of it is
# left then is recorded as open.
PATIENCE_S = 15.0
# After so long a load is in its steady state: queues stand, first streams have ended.
WARM_UP_S = 5.0
_numbers = itertools.count(1)


def play(
    stack: ScenarioStack | Here,
    arrivals: Sequence[Arrival],
    *,
    patience_s: float = PATIENCE_S,
    beside: Callable[[Load], Awaitable[None]] | None = None,
) -> list[Record]:
    """Drive it; `beside` runs at the same time, for what an operator does meanwhile."""

    async def both() -> list[Record]:
        load = Load(stack.targets, arrivals, next(_numbers))
        if beside is None:
            return await load.run(patience_s)
        running = asyncio.create_task(load.run(patience_s))
        await asyncio.sleep(0)  # so that its clock runs
        await beside(load)
        return await running

    records: list[Record] = uvloop.run(both())
    return records


def conditions(records: Iterable[Record]) -> dict[str, Any]:
    """How late requests were sent: where this is not small against what was measured, the machine was too
    busy to measure it.
    """
    late = [record.sent_s - record.arrival.at_s for record in records if record.sent_s]
    return {"requests": len(late), "sent late, ms p99": quantile_ms(late, 0.99)}
