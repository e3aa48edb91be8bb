"""One step of a measurement: holds a number of requests of a mix in flight until the engine is in a steady
state, then counts for a while.

The counted time begins and ends with some request's first token. Prompts are computed one after another or
many together, and any other cut would contain work without its tokens, or tokens without their work.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from serving.calibration.fit import Measurement
from serving.calibration.mixes import Mix, Prompts
from serving.calibration.probe import Probe, ProbeFailed, Stream

# Multiples of the step's seconds: how long the engine may take into its stride, and how long the count may
# wait for its last first token.
_WARM_LEAST: Final = 0.3
_WARM_MOST: Final = 10.0
_COUNT_MOST: Final = 4.0
# Fewer tokens tell no pace.
_PACE_TOKENS_LEAST: Final = 4
_PERCENTILE: Final = 0.95
# Looks at the engine while a step is counted, and the least time between two.
_LOOKS: Final = 20
_LOOK_LEAST_S: Final = 0.05
# Of those in flight each comes anew once in as many steps of the engine as it writes tokens, and waits for
# the next step to begin: that is no queue, nor is a few times as many, at most this part of all. Where
# answers are so short that it would be more, nothing can be told.
_BETWEEN_STEPS: Final = 3
_BETWEEN_STEPS_MOST: Final = 0.25
_TELLING_OUTPUT_LEAST: Final = 4
# A client this busy may have been the slower of the two.
CLIENT_BUSY: Final = 0.85


@dataclass(frozen=True, slots=True)
class Targets:
    """The latency targets in ms: between two tokens (ITL), and until the first (TTFT)."""

    tpot_ms: int
    ttft_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The result of a step. Times are the 95th percentile, NaN if too few were seen. `client_busy`: the share
    of a core that the client used. `queued`: the engine queued requests in most readings, so fewer were in
    work than in flight.
    """

    sequences: int
    done: Measurement
    tpot_ms: float
    ttft_ms: float
    client_busy: float
    cached_told: bool
    queued: bool = False

    def meets(self, targets: Targets) -> bool:
        """Whether both targets are met. A time that was not measured counts as met."""
        return not (self.tpot_ms > targets.tpot_ms or self.ttft_ms > targets.ttft_ms)

    def holds(self, targets: Targets) -> bool:
        """Whether the engine really runs that many at once: a queue short enough for the targets is not
        capacity.
        """
        return self.meets(targets) and not self.queued

    @property
    def output_per_s(self) -> float:
        """Output tokens per second of all streams."""
        return self.done.output / self.done.seconds


async def hold(
    probe: Probe, prompts: Prompts, mix: Mix, sequences: int, seconds: float, *, answers_least: int = 1
) -> Step:
    """Run one step. It counts for longer than `seconds` until enough answers have begun. Raises ProbeFailed,
    and ends every stream that it started.
    """
    streams: list[Stream] = []
    waiting: list[int] = []
    first = asyncio.Event()
    stopping = False

    async def slot() -> None:
        midway = True
        while not stopping:
            seen = Stream(time.monotonic())
            streams.append(seen)
            await probe.stream(prompts.next(mix, midway=midway), seen, first)
            midway = False

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(sequences):
                group.create_task(slot())
            begun = time.monotonic()
            while _answered(streams) < sequences or time.monotonic() - begun < _WARM_LEAST * seconds:
                if not await _next_first(first, begun + _WARM_MOST * seconds):
                    break
            opens = await _moment(streams, first, 2 * seconds)
            looking = group.create_task(_look(probe, max(_LOOK_LEAST_S, seconds / _LOOKS), waiting))
            cpu_s = time.process_time()
            await asyncio.sleep(seconds)
            last = opens + _COUNT_MOST * seconds
            while _begun(streams, opens) < answers_least - 1 and await _next_first(first, last):
                pass
            closes = await _moment(streams, first, max(0.0, last - time.monotonic()))
            cpu_s = time.process_time() - cpu_s
            looking.cancel()
            stopping = True
            await probe.stop_all()
    except ExceptionGroup as failed:
        # Of several the first: the others are the same engine failing for others.
        raise _first(failed) from failed
    return replace(
        _step(mix, sequences, streams, opens, closes, cpu_s), queued=queues(mix, sequences, waiting)
    )


def queues(mix: Mix, sequences: int, waiting: Sequence[int]) -> bool:
    """Whether the engine had more waiting requests than had just arrived, in most of the readings. One
    reading means nothing.
    """
    output = sum(shape.output for shape in mix.shapes) / len(mix.shapes)
    if output < _TELLING_OUTPUT_LEAST:
        return False
    just_came = sequences * min(_BETWEEN_STEPS / output, _BETWEEN_STEPS_MOST)
    return len(waiting) > 1 and sum(1 for seen in waiting if seen > just_came) * 2 > len(waiting)


def together(steps: Sequence[Step]) -> Step:
    """Steps of one mix as one: work and time are added, of the rest the worst counts."""
    done = Measurement(
        steps[0].done.mix,
        sum(step.done.seconds for step in steps),
        sum(step.done.uncached for step in steps),
        sum(step.done.cached for step in steps),
        sum(step.done.output for step in steps),
    )
    return Step(
        sequences=steps[0].sequences,
        done=done,
        tpot_ms=_worst([step.tpot_ms for step in steps]),
        ttft_ms=_worst([step.ttft_ms for step in steps]),
        client_busy=max(step.client_busy for step in steps),
        cached_told=all(step.cached_told for step in steps),
        queued=any(step.queued for step in steps),
    )


def _worst(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


async def _look(probe: Probe, every_s: float, waiting: list[int]) -> None:
    """Read repeatedly how many requests wait in the engine. A failed reading is ignored: the streams show
    whether the engine is alive.
    """
    while True:
        with contextlib.suppress(ProbeFailed):
            waiting.append((await probe.reading()).load.waiting)
        await asyncio.sleep(every_s)


def _answered(streams: Iterable[Stream]) -> int:
    return sum(1 for each in streams if each.marks)


def _begun(streams: Iterable[Stream], since: float) -> int:
    return sum(1 for each in streams if each.marks and each.marks[0][0] > since)


async def _next_first(first: asyncio.Event, until: float) -> bool:
    """Wait for some request's first token. False if none came."""
    first.clear()
    try:
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            await first.wait()
    except TimeoutError:
        return False
    return True


async def _moment(streams: Sequence[Stream], first: asyncio.Event, most_s: float) -> float:
    """The time of the next first token; now, if none comes in time. Of several at once it is the first."""
    since = time.monotonic()
    if not await _next_first(first, since + most_s):
        return time.monotonic()
    return min(each.marks[0][0] for each in streams if each.marks and each.marks[0][0] > since)


def _first(failed: ExceptionGroup[Exception]) -> Exception:
    one: Exception = failed
    while isinstance(one, ExceptionGroup):
        one = one.exceptions[0]
    return one


def _step(
    mix: Mix, sequences: int, streams: Sequence[Stream], opens: float, closes: float, cpu_s: float
) -> Step:
    uncached = cached = output = 0
    waits, paces = [], []
    for number, each in enumerate(streams):
        if not each.marks:
            continue
        first_at = each.marks[0][0]
        if opens < first_at <= closes:
            cached += each.cached or 0
            uncached += each.prompt - (each.cached or 0)
            if number >= sequences:  # those of the beginning came all at once
                waits.append(first_at - each.sent_at)
        inside = [(at, tokens) for at, tokens in each.marks if opens < at <= closes]
        if not inside:
            continue
        output += inside[-1][1] - max((tokens for at, tokens in each.marks if at <= opens), default=0)
        if inside[-1][1] - inside[0][1] >= _PACE_TOKENS_LEAST:
            paces.append((inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1]))
    done = Measurement(mix.name, closes - opens, uncached, cached, output)
    return Step(
        sequences=sequences,
        done=done,
        tpot_ms=1000 * _high(paces),
        ttft_ms=1000 * _high(waits),
        client_busy=cpu_s / done.seconds,
        cached_told=all(each.cached is not None for each in streams if each.marks),
    )


def _high(values: list[float]) -> float:
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, int(_PERCENTILE * len(values)))]
