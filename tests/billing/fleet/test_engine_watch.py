"""Engines added by hand: their load is shown, a dead one is down until it answers again, and one that
hangs holds up nobody.
"""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from sqlalchemy import Engine

from billing.audit.engine_counters import CounterPoller
from billing.audit.engine_runs import read_runs
from billing.fleet.engine_reading import Counters, NoCounters, Unreachable
from billing.fleet.engine_watch import EngineWatch, WatchedEngine
from billing.fleet.registered import read_registered
from billing.wire import redis_keys
from billing.wire.instance_entry import EngineLoad, InstanceEntry
from billing.wire.tokens import CounterPair
from tests.billing.engine_server import ScriptedEngine, register, serve

TIMEOUT_MS = 30_000


@pytest.fixture
def watch(raw_redis: redis.Redis) -> Iterator[EngineWatch]:
    made = EngineWatch(raw_redis, timeout_ms=TIMEOUT_MS)
    yield made
    made.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with serve(ScriptedEngine()) as made:
        yield made


@pytest.fixture
def hanging() -> Iterator[str]:
    """The URL of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def gone() -> Iterator[ScriptedEngine]:
    """An engine that is not there: its port refuses, and is nobody else's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield ScriptedEngine(url=f"http://127.0.0.1:{taken.getsockname()[1]}")


def shown(client: redis.Redis, instance: str = "i1") -> InstanceEntry:
    return next(entry for entry in read_registered(client) if entry.instance == instance)


def has_metrics(client: redis.Redis) -> bool:
    return shown(client).has_metrics


def step_until(watch: EngineWatch, condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Call it again and again, as its loop does, until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        watch.step()
        time.sleep(0.01)


def test_the_load_of_an_engine_added_by_hand_is_shown_and_nothing_else_changes(
    raw_redis: redis.Redis, watch: EngineWatch, engine: ScriptedEngine
) -> None:
    engine.key = "ek"
    register(raw_redis, engine, epoch="e7", later_field=[1])
    before = shown(raw_redis)
    engine.running, engine.waiting, engine.kv_usage = 4, 3, 0.5
    step_until(watch, lambda: shown(raw_redis).load.running == 4)
    after = shown(raw_redis)
    assert (after.load.waiting, after.load.kv_usage, after.status, after.epoch) == (
        3,
        0.5,
        "ready",
        before.epoch,
    )
    assert b'"later_field":[1]' in (raw_redis.hget(redis_keys.INSTANCES, "i1") or b"")
    assert set(engine.asked) == {"Bearer ek"}
    engine.running = engine.waiting = 0
    step_until(watch, lambda: shown(raw_redis).load.running == 0)


def test_fault_33_one_that_refuses_is_down_until_it_answers_again(
    raw_redis: redis.Redis, watch: EngineWatch, gone: ScriptedEngine
) -> None:
    register(raw_redis, gone)
    assert shown(raw_redis).status == "ready"
    step_until(watch, lambda: shown(raw_redis).status == "down")
    with serve(ScriptedEngine(running=1)) as back:
        register(raw_redis, back, status="down")
        step_until(watch, lambda: shown(raw_redis).status == "ready")
        assert shown(raw_redis).load.running == 1


def test_an_engine_that_hangs_does_not_delay_others(
    raw_redis: redis.Redis, watch: EngineWatch, engine: ScriptedEngine, hanging: str
) -> None:
    register(raw_redis, ScriptedEngine(url=hanging), "hangs")
    register(raw_redis, engine, "works")
    step_until(watch, lambda: len(engine.asked) >= 5)
    assert shown(raw_redis, "hangs").status == "ready"


def test_another_providers_api_is_left_alone(
    raw_redis: redis.Redis, watch: EngineWatch, engine: ScriptedEngine
) -> None:
    with serve(ScriptedEngine()) as provider:
        register(raw_redis, provider, "provider", engine="anthropic")
        register(raw_redis, engine, "works")
        step_until(watch, lambda: len(engine.asked) >= 3)
        assert provider.asked == []


def test_one_that_hangs_is_down_after_several_looks(raw_redis: redis.Redis, hanging: str) -> None:
    watch = EngineWatch(raw_redis, timeout_ms=10)
    register(raw_redis, ScriptedEngine(url=hanging), load={"running": 2, "waiting": 0, "kv_usage": 0.0})
    step_until(watch, lambda: shown(raw_redis).status == "down")
    assert shown(raw_redis).load.running == 0
    watch.close()


def test_a_refusal_counts_twice_and_silence_only_after_five_looks() -> None:
    silent, refused = Unreachable("ReadTimeout"), Unreachable("ConnectError", refused=True)
    watched = WatchedEngine()
    assert [watched.take(silent) for _ in range(4)] == [None] * 4
    assert watched.take(silent) == ("down", EngineLoad())
    busy = Counters(CounterPair(1, 1), EngineLoad(2, 1, 0.9), None)
    assert watched.take(busy) == ("ready", EngineLoad(2, 1, 0.9))
    assert [watched.take(refused), watched.take(refused)] == [None, ("down", EngineLoad())]
    assert watched.take(NoCounters()) == ("ready", EngineLoad())
    # One look that is refused between two that are not says little.
    assert [watched.take(each) for each in (refused, silent, refused, silent)] == [None] * 4


@pytest.mark.parametrize(("status", "seen"), [(404, "ready"), (401, "ready"), (500, "ready"), (503, "down")])
def test_whatever_answers_is_alive_but_a_proxy_that_answers_for_it_is_not(
    raw_redis: redis.Redis, watch: EngineWatch, engine: ScriptedEngine, status: int, seen: str
) -> None:
    engine.status = status
    register(raw_redis, engine, status="down" if seen == "ready" else "ready")
    step_until(watch, lambda: shown(raw_redis).status == seen)


def test_what_tells_no_load_is_asked_less_often(raw_redis: redis.Redis, engine: ScriptedEngine) -> None:
    now = 0.0
    watch = EngineWatch(raw_redis, timeout_ms=TIMEOUT_MS, clock=lambda: now)
    register(raw_redis, engine, status="down")
    engine.status = 404
    step_until(watch, lambda: shown(raw_redis).status == "ready")
    with serve(ScriptedEngine()) as other:
        register(raw_redis, other, "i2")
        step_until(watch, lambda: len(other.asked) >= 5)
        assert len(engine.asked) == 1
    now = 10.0
    step_until(watch, lambda: len(engine.asked) == 2)
    watch.close()


def test_entries_of_workers_removed_ones_and_broken_ones_are_left_alone(
    raw_redis: redis.Redis, watch: EngineWatch, engine: ScriptedEngine, gone: ScriptedEngine
) -> None:
    register(raw_redis, gone, "by-worker", lease_until_ms=4_000_000_000_000)
    register(raw_redis, gone, "removed", status="draining", lease_until_ms=4_000_000_000_000)
    raw_redis.hset(redis_keys.INSTANCES, mapping={"broken": b"{", "list": b"[]"})
    register(raw_redis, engine)
    before = raw_redis.hgetall(redis_keys.INSTANCES)
    engine.running = 1
    step_until(watch, lambda: len(engine.asked) >= 5 and shown(raw_redis).load.running == 1)
    after = raw_redis.hgetall(redis_keys.INSTANCES)
    assert {name for name in before if before[name] != after[name]} == {b"i1"}


def test_an_entry_that_is_removed_during_a_look_does_not_come_back(
    raw_redis: redis.Redis, engine: ScriptedEngine
) -> None:
    watch = EngineWatch(raw_redis, timeout_ms=TIMEOUT_MS)
    engine.running = 1
    engine.on_ask = lambda: raw_redis.hdel(redis_keys.INSTANCES, "i1")
    register(raw_redis, engine)
    watch.step()
    step_until(watch, lambda: bool(engine.asked))
    watch.close()
    assert raw_redis.hgetall(redis_keys.INSTANCES) == {}


def test_of_several_processes_one_looks_and_another_takes_over(
    raw_redis: redis.Redis, engine: ScriptedEngine
) -> None:
    first, second = (EngineWatch(raw_redis, timeout_ms=TIMEOUT_MS) for _ in range(2))
    register(raw_redis, engine)
    raw_redis.set(redis_keys.ENGINE_WATCH_LOCK, "another", ex=600)
    holders: list[object] = []
    engine.on_ask = lambda: holders.append(raw_redis.get(redis_keys.ENGINE_WATCH_LOCK))
    for _ in range(5):
        first.step()
        second.step()
    first.close()
    assert engine.asked == []
    raw_redis.delete(redis_keys.ENGINE_WATCH_LOCK)
    step_until(second, lambda: len(engine.asked) >= 1)
    assert b"another" not in holders
    second.close()
    assert not raw_redis.exists(redis_keys.ENGINE_WATCH_LOCK)


def test_what_a_dead_engine_had_counted_stays_and_goes_on_when_it_is_back(
    database: Engine, raw_redis: redis.Redis, engine: ScriptedEngine, gone: ScriptedEngine
) -> None:
    poller = CounterPoller(database, raw_redis, timeout_ms=2000)
    engine.prompt, engine.generation, engine.started = 10, 5, "1.0"
    register(raw_redis, engine)
    poller.poll_once()
    register(raw_redis, gone, status="down")
    poller.poll_once()
    with database.connect() as connection:
        assert [(run.state, run.last) for run in read_runs(connection)] == [("open", CounterPair(10, 5))]
    engine.prompt, engine.generation, engine.started = 30, 7, "2.0"
    register(raw_redis, engine)
    poller.poll_once()
    with database.connect() as connection:
        assert sum((run.produced for run in read_runs(connection)), CounterPair()) == CounterPair(40, 12)
    poller.close()


def test_an_engine_without_a_page_of_metrics_is_shown_so_until_it_has_one(
    watch: EngineWatch, engine: ScriptedEngine, raw_redis: redis.Redis
) -> None:
    engine.status = 404
    register(raw_redis, engine)
    assert has_metrics(raw_redis), "nobody knows yet"
    step_until(watch, lambda: not has_metrics(raw_redis))
    assert shown(raw_redis).status == "ready"
    other = EngineWatch(raw_redis, timeout_ms=TIMEOUT_MS)
    watch.close()
    engine.status = 200
    step_until(other, lambda: has_metrics(raw_redis))
    other.close()
