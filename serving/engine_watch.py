"""Watches a running engine: reads load and counters every second, and reports when it no longer works. It
knows no registry and stops nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine_client import ANSWER_TIMEOUT_S, EngineClient, EngineUnanswering
from serving.engine_metrics import EngineReading


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How often to read, how long to wait for an answer, and how many readings in a row may fail. A loaded
    engine may be slow, so there is time.
    """

    poll_s: float = 1.0
    answer_timeout_s: float = ANSWER_TIMEOUT_S
    unanswered_most: int = 5


async def watch(
    client: EngineClient, limits: WatchLimits, on_reading: Callable[[EngineReading], None]
) -> str:
    """Calls `on_reading` after each reading. Once the engine has failed, returns why."""
    unanswered = 0
    while True:
        try:
            if not await client.is_healthy():
                return "says that it is not healthy"
            on_reading(await client.reading())
            unanswered = 0
        except EngineUnanswering as exc:
            unanswered += 1
            if unanswered >= limits.unanswered_most:
                return f"did not answer {unanswered} times in a row ({exc})"
        await asyncio.sleep(limits.poll_s)


async def until_idle(
    client: EngineClient,
    notice_s: float,
    drain_s: float,
    on_reading: Callable[[EngineReading], None],
    *,
    unanswered_most: int,
    poll_s: float = 0.25,
) -> bool:
    """Wait until nothing has run for two readings in a row, and at least `notice_s`, in which gateways stop
    sending requests; then the last reading's counters are final. False if requests still ran after `drain_s`
    more. Raises EngineUnanswering after too many failed readings in a row.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    idle_looks = unanswered = 0
    while True:
        try:
            reading = await client.reading()
        except EngineUnanswering:
            # As while it serves: one that is loaded may be slow, and giving it up would cut off all that it
            # has.
            idle_looks, unanswered = 0, unanswered + 1
            if unanswered >= unanswered_most:
                raise
        else:
            unanswered = 0
            on_reading(reading)
            idle_looks = idle_looks + 1 if reading.idle else 0
        waited_s = loop.time() - started
        if idle_looks >= 2 and waited_s >= notice_s:
            return True
        if waited_s >= drain_s + notice_s:
            return False
        await asyncio.sleep(poll_s)
