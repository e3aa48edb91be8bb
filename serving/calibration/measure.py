"""The whole measurement: how many sequences the targets allow, what each mix then achieves, the fit, and how
well it predicts an unseen mix and far longer prompts.

All mixes run with the same number of sequences in flight, because the cost of an output token depends on how
many share a step. In any case it returns what the engine produced: nobody is billed for that, and the audit
must know.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serving.calibration.fit import Fit, FitFailed, Measurement, fit
from serving.calibration.load import CLIENT_BUSY, Step, Targets, hold, together
from serving.calibration.long_prompts import hold_long, remarks_on_long
from serving.calibration.mixes import Mixes, Prompts, mixes_for
from serving.calibration.probe import EngineAddress, Probe, ProbeFailed, Spent
from serving.engine_metrics import EngineReading

# The most that vLLM runs at once by itself, on the largest GPUs.
_SEQUENCES_MAX: Final = 1_024
# Twice the sequences must bring at least this much more, or the engine is full.
_GROWTH_LEAST: Final = 1.05
# All mixes in turn, and again: what else the machine does meanwhile then falls on all of them alike.
_ROUNDS: Final = 2
# In each round, so that one request more or less at the edges of what is counted is a few percent of it.
_ANSWERS_LEAST: Final = 12
# The mixes are the same engine's: where one is further off than this, they were not measured under the same
# conditions.
_FIT_MISS_MOST: Final = 0.15
_SEED: Final = 20_260_101
_REST_S: Final = 30.0
_REST_POLL_S: Final = 0.1

Note = Callable[[str], None]


class CannotMeasure(Exception):
    """The engine cannot be measured now, or not with these targets. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """What to measure."""

    engine: EngineAddress
    context_tokens: int
    targets: Targets
    seconds_per_step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCapacity:
    """The result. `steps`: those of the fit. `error`: the relative error with which the held-back mix was
    predicted. `long`: prompts longer than any that was fitted; None if the context has none, or if time was
    too short.
    """

    fit: Fit
    sequences: int
    steps: tuple[Step, ...]
    held_back: Step
    long: Step | None
    engine_version: str
    remarks: tuple[str, ...]

    @property
    def error(self) -> float:
        """0.05: the prediction said 5 % too long."""
        return self.fit.error_of(self.held_back.done)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A calibration, or why there is none, and what the engine produced in either case. `run` names it."""

    run: str
    calibration: MeasuredCapacity | None
    failure: str | None
    spent: Spent
    interrupted: bool = False


async def calibrate(plan: MeasurementPlan, note: Note) -> Outcome:
    """Measure an idle engine; `note` gets each step. Raises CannotMeasure; ProbeFailed only while the engine
    has not been asked for anything.
    """
    try:
        mixes = mixes_for(plan.context_tokens)
    except ValueError as exc:
        raise CannotMeasure(f"{exc}.") from exc
    async with Probe(plan.engine) as probe:
        version = await probe.version()
        before = await probe.reading()
        if not before.idle:
            load = before.load
            raise CannotMeasure(
                f"the engine is not idle ({load.running} running, {load.waiting} waiting): drain it, or "
                "come back later."
            )
        try:
            found = await _measure(probe, plan, mixes, version, note)
        except (ProbeFailed, CannotMeasure, FitFailed) as exc:
            return Outcome(probe.run, None, str(exc), await _counted(probe, before))
        except asyncio.CancelledError:
            return Outcome(probe.run, None, "interrupted", await _counted(probe, before), interrupted=True)
        spent = probe.spent
        counted = await _counted(probe, before)
        if (counted.prompt, counted.output) != (spent.prompt, spent.output):
            others = (
                f"{counted.prompt - spent.prompt} prompt and {counted.output - spent.output} output tokens"
            )
            return Outcome(
                probe.run, None, f"somebody else used the engine meanwhile ({others}): drain it first.", spent
            )
        return Outcome(probe.run, found, None, spent)


async def _measure(
    probe: Probe, plan: MeasurementPlan, mixes: Mixes, version: str, note: Note
) -> MeasuredCapacity:
    prompts = Prompts(f"calibration-{probe.run}", _SEED)
    sequences = (await _most_sequences(probe, prompts, plan, mixes, note)).sequences
    asked = (mixes.typical, *mixes.fitted, mixes.held_back)
    rounds: list[list[Step]] = [[] for _ in asked]
    for _ in range(_ROUNDS):
        for mix, steps in zip(asked, rounds, strict=True):
            steps.append(
                await hold(
                    probe, prompts, mix, sequences, plan.seconds_per_step, answers_least=_ANSWERS_LEAST
                )
            )
            note(_told(steps[-1], plan.targets))
    *fitted, held_back = (together(steps) for steps in rounds)
    told = all(step.cached_told for step in (*fitted, held_back))
    done = [step.done if told else _without_cache(step.done) for step in fitted]
    result = fit(done)
    long = await hold_long(probe, prompts, result, plan.context_tokens, sequences, plan.seconds_per_step)
    if long is not None:
        note(_told(long, plan.targets))
    remarks = (
        *_remarks((*fitted, held_back), result, told=told),
        *remarks_on_long(plan.context_tokens, result, long),
    )
    return MeasuredCapacity(
        fit=result,
        sequences=sequences,
        steps=tuple(fitted),
        held_back=held_back,
        long=long,
        engine_version=version,
        remarks=remarks,
    )


async def _most_sequences(
    probe: Probe, prompts: Prompts, plan: MeasurementPlan, mixes: Mixes, note: Note
) -> Step:
    """The step with the most sequences of the typical mix at which the targets are met, none of them queues
    in the engine, and more would still have increased the output.
    """
    best: Step | None = None
    sequences = 1
    while sequences <= _SEQUENCES_MAX:
        step = await hold(probe, prompts, mixes.typical, sequences, plan.seconds_per_step)
        note(_told(step, plan.targets))
        if not step.holds(plan.targets):
            break
        if best is not None and step.output_per_s < best.output_per_s * _GROWTH_LEAST:
            return best
        best = step
        sequences *= 2
    if best is None and step.meets(plan.targets):
        raise CannotMeasure("the engine lets even one request at a time wait: does somebody else use it?")
    if best is None:
        raise CannotMeasure(
            f"the targets do not hold even for one request at a time ({step.tpot_ms:.0f} ms a token, "
            f"{step.ttft_ms:.0f} ms until the first): "
            "set others with --tpot-ms and --ttft-ms."
        )
    between = (best.sequences + min(sequences, _SEQUENCES_MAX)) // 2
    if sequences > _SEQUENCES_MAX or between == best.sequences:
        return best
    step = await hold(probe, prompts, mixes.typical, between, plan.seconds_per_step)
    note(_told(step, plan.targets))
    return step if step.holds(plan.targets) and step.output_per_s > best.output_per_s else best


def _without_cache(done: Measurement) -> Measurement:
    """If the engine does not report what it had cached, the whole prompt counts, as it will for tenants."""
    return Measurement(done.mix, done.seconds, done.uncached + done.cached, 0, done.output)


def _remarks(steps: tuple[Step, ...], result: Fit, *, told: bool) -> tuple[str, ...]:
    """What an operator should know before selling by it; the last step was not part of the fit."""
    remarks = []
    if not told:
        remarks.append(
            "The engine does not tell cached tokens (--enable-prompt-tokens-details): they weigh as uncached."
        )
    elif not result.cached_measured:
        remarks.append("Nothing came from the prefix cache: cached tokens weigh as uncached.")
    worst = max(steps[:-1], key=lambda step: abs(result.error_of(step.done)))
    if abs(result.error_of(worst.done)) > _FIT_MISS_MOST:
        miss = f"{abs(result.error_of(worst.done)):.0%} on {worst.done.mix}"
        remarks.append(
            f"The fitted mixes do not agree ({miss}): was the machine busy otherwise? Measure again."
        )
    busiest = max(step.client_busy for step in steps)
    if busiest > CLIENT_BUSY:
        remarks.append(
            f"This client took {busiest:.0%} of a core: the engine may be able to do more than it could ask."
        )
    return tuple(remarks)


async def _counted(probe: Probe, before: EngineReading) -> Spent:
    """What the engine's own counters say that it has produced, once it is idle."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _REST_S
    reading = await _reading(probe)
    while reading is not None and not reading.idle and loop.time() < until:
        await asyncio.sleep(_REST_POLL_S)
        reading = await _reading(probe)
    if reading is None or reading.counters.prompt < before.counters.prompt:
        return probe.spent  # It died: what its streams said is all there is.
    prompt = reading.counters.prompt - before.counters.prompt
    output = reading.counters.generation - before.counters.generation
    return Spent(prompt, min(prompt, probe.spent.cached), output)


async def _reading(probe: Probe) -> EngineReading | None:
    try:
        return await probe.reading()
    except ProbeFailed:
        return None


def _told(step: Step, targets: Targets) -> str:
    done = step.done
    rates = " + ".join(
        f"{count / done.seconds:,.0f} {word}/s"
        for word, count in (("uncached", done.uncached), ("cached", done.cached), ("output", done.output))
        if count
    )
    verdict = "holds" if step.meets(targets) else "misses the targets"
    if step.queued:
        verdict = "the engine queues" if step.meets(targets) else f"{verdict}, and the engine queues"
    return (
        f"{done.mix}, {step.sequences} at once: {rates}; {_ms(step.tpot_ms)} a token, "
        f"{_ms(step.ttft_ms)} until the first; {verdict}"
    )


def _ms(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:,.0f} ms"
