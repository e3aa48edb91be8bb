"""Engine counters: read as they are, and no restart or loss goes unnoticed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine

from billing.audit.engine_counters import CounterPoller
from billing.audit.engine_runs import EngineRun, read_runs
from billing.fleet.engine_probe import ask
from billing.fleet.engine_reading import Counters, NoCounters, Unreachable, parse_counters, read_engine
from billing.refusals import Unreachable as EngineUnreachable
from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair
from loadtest import plain_http
from tests.billing.engine_server import ScriptedEngine, register, serve


@pytest.fixture
def poller(database: Engine, raw_redis: redis.Redis) -> Iterator[CounterPoller]:
    made = CounterPoller(database, raw_redis, timeout_ms=2000)
    yield made
    made.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with serve(ScriptedEngine()) as made:
        yield made


def runs(database: Engine) -> list[EngineRun]:
    with database.connect() as connection:
        return read_runs(connection)


def produced(database: Engine) -> CounterPair:
    return sum((run.produced for run in runs(database)), CounterPair())


def test_counters_are_summed_over_the_engines_of_one_server() -> None:
    page = """# HELP vllm:prompt_tokens_total x
vllm:prompt_tokens_total{engine="0",model_name="a b}c"} 396.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 1.5e+02
vllm:generation_tokens_total{engine="0"} 69.0 1700000000
vllm:prompt_tokens_created{engine="0"} 1.79e+09
vllm:num_requests_running{engine="0"} 0.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
process_start_time_seconds 1.79549207214e+09
"""
    assert parse_counters(page) == Counters(
        CounterPair(546, 69), EngineLoad(running=0, waiting=2, kv_usage=0.5), started="1.79549207214e+09"
    )


@pytest.mark.parametrize("value", ["NaN", "sNaN", "-1.0", "0.5", "x", "+Inf", "1e30", "1e999999"])
def test_a_counter_that_cannot_be_is_no_reading(value: str) -> None:
    page = f'vllm:prompt_tokens_total{{a="b"}} {value}\nvllm:generation_tokens_total{{a="b"}} 1.0\n'
    assert isinstance(parse_counters(page), Unreachable)


def test_an_engine_whose_page_never_ends_is_given_up_in_time(engine: ScriptedEngine) -> None:
    engine.drips = threading.Event()
    try:
        with plain_http.Client(timeout=30) as client:
            reading = read_engine(client, engine.url, None, within_s=0.3)
            with pytest.raises(EngineUnreachable, match=r"has not answered within 0\.3 s"):
                ask(client, "GET", f"{engine.url}/metrics", {}, within_s=0.3)
    finally:
        engine.drips.set()
    assert reading == Unreachable("no whole page within 0.3 s")


def test_a_key_that_cannot_be_sent_hides_no_other_engine(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    register(raw_redis, engine, "odd", key="schlüssel")
    poll = poller.poll_once()
    assert isinstance(poll.readings["i1"], Counters)
    assert isinstance(poll.readings["odd"], Unreachable)
    assert "schl" not in poll.readings["odd"].reason


def test_a_page_without_the_counters_has_none() -> None:
    assert parse_counters("up 1\n") == NoCounters(page=True)
    assert parse_counters("") == NoCounters(page=True)


def test_an_engine_that_is_starting_is_not_asked_before_its_baseline_is_known(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    engine.prompt, engine.generation = 1, 1
    register(raw_redis, engine, status="starting")
    poller.poll_once()
    assert (runs(database), engine.asked) == ([], [])
    register(raw_redis, engine, status="ready", baseline={"prompt": 1, "generation": 1})
    poller.poll_once()
    assert produced(database) == CounterPair(0, 0)


def test_what_an_engine_says_is_remembered_beyond_its_baseline(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    engine.key = "ek"
    engine.prompt, engine.generation = 110, 55
    register(raw_redis, engine, baseline={"prompt": 100, "generation": 50})
    poller.poll_once()
    assert engine.asked == ["Bearer ek"]
    assert produced(database) == CounterPair(10, 5)
    engine.prompt = 130
    poller.poll_once()
    assert produced(database) == CounterPair(30, 5)


def test_counters_that_go_back_begin_a_new_run_and_lose_nothing(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine, baseline={"prompt": 5, "generation": 5})
    engine.prompt, engine.generation = 105, 55
    poller.poll_once()
    engine.prompt, engine.generation = 7, 60
    poller.poll_once()
    assert [(run.run, run.state) for run in runs(database)] == [(0, "closed"), (1, "open")]
    assert produced(database) == CounterPair(107, 110)


def test_a_restart_that_has_already_counted_further_shows_by_its_start_time(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation, engine.started = 100, 50, "1.0"
    poller.poll_once()
    engine.prompt, engine.generation, engine.started = 200, 90, "2.0"
    poller.poll_once()
    assert produced(database) == CounterPair(300, 140)


def test_an_engine_that_started_anew_before_the_first_poll_counts_from_zero(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine, baseline={"prompt": 1000, "generation": 1000})
    engine.prompt, engine.generation = 4, 2
    poller.poll_once()
    assert produced(database) == CounterPair(4, 2)


def test_a_new_epoch_closes_the_former_with_what_its_worker_left(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine, epoch="e1")
    engine.prompt, engine.generation = 10, 5
    poller.poll_once()
    engine.prompt, engine.generation = 3, 1
    final = {
        "epoch": "e1",
        "prompt": 14,
        "generation": 9,
        "baseline": {"prompt": 0, "generation": 0},
        "exact": True,
    }
    register(raw_redis, engine, epoch="e2", earlier=[final])
    poller.poll_once()
    assert [(run.epoch, run.state, run.exact) for run in runs(database)] == [
        ("e1", "closed", True),
        ("e2", "open", False),
    ]
    assert produced(database) == CounterPair(17, 10)


def test_an_epoch_that_was_never_polled_is_known_from_what_its_worker_left(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    final = {
        "epoch": "e0",
        "prompt": 14,
        "generation": 9,
        "baseline": {"prompt": 4, "generation": 0},
        "exact": True,
    }
    register(raw_redis, engine, epoch="e1", earlier=[final])
    poller.poll_once()
    poller.poll_once()
    assert produced(database) == CounterPair(10, 9)


def test_an_engine_without_counters_is_marked_and_one_that_is_silent_keeps_its_last(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine, "upstream")
    engine.status = 404
    poller.poll_once()
    assert [run.state for run in runs(database)] == ["no_counters"]
    raw_redis.delete("taas:instances")
    with serve(ScriptedEngine(prompt=9, generation=9)) as other:
        register(raw_redis, other, "gone")
        poller.poll_once()
    poll = poller.poll_once()
    assert isinstance(poll.readings["gone"], Unreachable)
    assert [run.last for run in runs(database) if run.instance == "gone"] == [CounterPair(9, 9)]


def test_an_entry_that_cannot_be_read_does_not_hide_the_others(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    raw_redis.hset("taas:instances", "broken", b"{")
    poll = poller.poll_once()
    assert poll.registry.unreadable == ("broken",)
    assert list(poll.readings) == ["i1"]


def test_a_real_page_of_vllm_is_read() -> None:
    page = Path(__file__).with_name("vllm_metrics.txt").read_text(encoding="utf-8")
    reading = parse_counters(page)
    assert isinstance(reading, Counters)
    assert reading.tokens == CounterPair(396, 69)
    assert reading.started is not None
