"""The whole measurement on simulated engines, whose speed is known: what it finds, what it says when it
cannot, and that no token is left out.
"""

import asyncio
import re

import pytest

from serving.calibration.load import Targets, queues
from serving.calibration.measure import CannotMeasure, MeasurementPlan, Outcome, calibrate
from serving.calibration.mixes import Mix, Shape
from serving.calibration.probe import EngineAddress, ProbeFailed
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.serving.conftest import eventually

DECODE_MS = 10
PREFILL_PER_S = 40_000
SLOTS = 8
ENGINE = ("--decode-ms", str(DECODE_MS), "--prefill-tokens-per-s", str(PREFILL_PER_S), "--slots", str(SLOTS))
# A context whose mixes are short, for what is not about how exact the figures are, and one that has long
# prompts.
SMALL, LARGE = 512, 4096
# By how much the held-back mix may be predicted wrongly: on a machine of its own 1 %, on one that does other
# things as well far more.
ERROR_MOST = 0.40


def plan_for(
    engine: SimEngine, *, key: str | None = None, abort: bool = True, context: int = SMALL, **wanted: float
) -> MeasurementPlan:
    targets = Targets(int(wanted.get("tpot_ms", 100)), int(wanted.get("ttft_ms", 2000)))
    address = EngineAddress(engine.url, key or engine.key, engine.model, abort)
    return MeasurementPlan(address, context, targets, wanted.get("seconds", 0.2))


async def measured(plan: MeasurementPlan) -> tuple[Outcome, list[str]]:
    told: list[str] = []
    return await calibrate(plan, told.append), told


@pytest.mark.speed
async def test_the_speed_of_a_known_engine_is_found_and_predicts_a_mix_it_has_not_seen(
    make_engine: EngineMaker,
) -> None:
    engine = make_engine(*ENGINE, "--context", str(LARGE))
    outcome, told = await measured(plan_for(engine, context=LARGE, seconds=0.4))
    found = outcome.calibration
    assert found is not None, outcome.failure
    assert SLOTS / 2 <= found.sequences <= SLOTS
    assert abs(found.error) <= ERROR_MOST, told
    # An output token takes its share of a step. A prompt takes its prefill, and the part of a step in which
    # its place was free.
    w_out = 1000 * DECODE_MS / 1000 / SLOTS * PREFILL_PER_S
    assert 0.4 * w_out < found.fit.w_out_mu < 2.5 * w_out
    assert 0.4 * PREFILL_PER_S < found.fit.capacity_mu_s / 1000 < 1.5 * PREFILL_PER_S
    assert found.fit.w_cached_mu < 300
    assert found.long is not None
    assert found.long.done.mix == f"prompts of {LARGE // 2}"
    assert found.long.done.uncached >= 4 * LARGE // 2
    assert 0.4 < 1 + found.fit.error_of(found.long.done) < 2.5
    assert found.engine_version == "0.32.0"
    assert len(told) >= 9
    counters = engine.counters()
    assert (outcome.spent.prompt, outcome.spent.output) == (counters["prompt"], counters["generation"])
    assert outcome.spent.cached == counters["cached"]
    assert counters["running"] == counters["waiting"] == 0


@pytest.mark.speed
async def test_targets_bound_the_sequences(make_engine: EngineMaker) -> None:
    # Prompts of others slow each token, so that many at once miss a target that one keeps.
    engine = make_engine("--decode-ms", "10", "--prefill-tokens-per-s", "4000", "--slots", "64")
    told: list[str] = []

    def note(line: str) -> None:
        told.append(line)
        if line.startswith("reading"):
            measuring.cancel()  # The number of sequences is found; what follows is for other tests.

    measuring = asyncio.create_task(calibrate(plan_for(engine, tpot_ms=16), note))
    assert (await measuring).interrupted
    assert any("misses" in line for line in told)
    found = re.match(r"reading, (\d+) at once", told[-1])
    assert found is not None, told
    assert 1 <= int(found[1]) < 16


@pytest.mark.speed
async def test_what_queues_in_the_engine_is_not_taken_for_room(make_engine: EngineMaker) -> None:
    # Slow enough to be kept busy by a machine that is busy itself. The targets alone would let any queue
    # pass, and short answers leave a place empty now and then, so that a queue brings a little more.
    slots = 16
    engine = make_engine("--decode-ms", "30", "--prefill-tokens-per-s", "0", "--slots", str(slots))
    told: list[str] = []

    def note(line: str) -> None:
        told.append(line)
        if line.startswith("reading"):
            measuring.cancel()

    measuring = asyncio.create_task(calibrate(plan_for(engine, tpot_ms=10_000, ttft_ms=60_000), note))
    assert (await measuring).interrupted
    tried = {int(found[1]): line for line in told if (found := re.match(r"typical, (\d+) at once", line))}
    assert all(
        line.endswith("the engine queues") for sequences, line in tried.items() if sequences > slots
    ), told
    used = re.match(r"reading, (\d+) at once", told[-1])
    assert used is not None, told
    assert int(used[1]) <= slots, told


def test_a_queue_is_one_that_is_there_in_most_looks() -> None:
    typical = Mix("typical", (Shape(0, 64, 64),))
    assert queues(typical, 32, [16, 15, 0, 16])
    assert queues(typical, 17, [1, 1, 1, 1])
    # The moment between two steps of an engine, a queue that was there now and then, and too few looks to
    # say.
    assert not queues(typical, 64, [3, 2, 3, 3])
    assert not queues(typical, 32, [16, 0, 0, 16])
    assert not queues(typical, 32, [16])
    assert not queues(typical, 32, [])
    # Of answers of one token every one waits for the step that writes it.
    assert not queues(Mix("long", (Shape(0, 1024, 1),)), 2, [2, 1, 2, 1])


async def test_targets_that_one_request_misses_are_refused_and_what_it_cost_is_told(
    make_engine: EngineMaker,
) -> None:
    engine = make_engine(*ENGINE)
    outcome, _ = await measured(plan_for(engine, tpot_ms=5))
    assert outcome.calibration is None
    assert "--tpot-ms" in str(outcome.failure)
    counters = engine.counters()
    assert counters["generation"] > 0
    assert (outcome.spent.prompt, outcome.spent.output) == (counters["prompt"], counters["generation"])


async def test_an_engine_that_is_not_idle_is_not_loaded(make_engine: EngineMaker) -> None:
    engine = make_engine(*ENGINE)
    asking = asyncio.create_task(asyncio.to_thread(ask, engine, 200))
    await eventually(lambda: engine.counters()["running"] == 1)
    with pytest.raises(CannotMeasure, match="not idle"):
        await measured(plan_for(engine))
    assert len(engine.requests()) == 1
    await asking


async def test_somebody_elses_request_meanwhile_spoils_it_and_stays_theirs(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "2", "--slots", "4")
    measuring = asyncio.create_task(measured(plan_for(engine)))
    await eventually(lambda: engine.counters()["running"] > 1)
    await asyncio.to_thread(ask, engine, 7)
    outcome, _ = await measuring
    assert outcome.calibration is None
    assert "somebody else" in str(outcome.failure)
    assert engine.counters()["generation"] - outcome.spent.output == 7


async def test_what_an_interrupted_measurement_cost_is_told(make_engine: EngineMaker) -> None:
    engine = make_engine(*ENGINE)
    measuring = asyncio.create_task(measured(plan_for(engine, seconds=30)))
    await eventually(lambda: engine.counters()["generation"] > 10)
    measuring.cancel()
    outcome, _ = await measuring
    assert outcome.interrupted
    counters = engine.counters()
    assert counters["running"] == 0
    assert (outcome.spent.prompt, outcome.spent.output) == (counters["prompt"], counters["generation"])


async def test_without_abort_by_id_streams_are_waited_for(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "2", "--prefill-tokens-per-s", "50000", "--slots", "2")
    outcome, _ = await measured(plan_for(engine, abort=False))
    assert outcome.calibration is not None, outcome.failure
    assert outcome.calibration.long is None
    assert not any(asked["path"] == "/inference/v1/abort_requests" for asked in engine.requests())


async def test_a_wrong_key_is_told_as_one(make_engine: EngineMaker) -> None:
    outcome, _ = await measured(plan_for(make_engine(*ENGINE), key="wrong"))
    assert outcome.calibration is None
    assert "--engine-key" in str(outcome.failure)
    assert outcome.spent.output == 0


async def test_an_engine_that_is_gone_is_told(make_engine: EngineMaker) -> None:
    engine = make_engine(*ENGINE)
    engine.kill()
    with pytest.raises(ProbeFailed, match="does not answer"):
        await measured(plan_for(engine))


async def test_an_engine_that_dies_meanwhile_ends_it(make_engine: EngineMaker) -> None:
    engine = make_engine(*ENGINE)
    measuring = asyncio.create_task(measured(plan_for(engine, seconds=5)))
    await eventually(lambda: engine.counters()["generation"] > 10)
    engine.kill()
    outcome, _ = await measuring
    assert outcome.calibration is None
    assert outcome.spent.output > 0


def ask(engine: SimEngine, tokens: int) -> None:
    """As a tenant's request does."""
    body = {"model": engine.model, "prompt": "tide", "max_tokens": tokens, "ignore_eos": True}
    assert engine.post("/v1/completions", body).status_code == 200
