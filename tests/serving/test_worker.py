"""Promises of a worker about its engine and its place in the registry."""

import asyncio
import hashlib
import json
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from billing.wire import redis_keys
from billing.wire.engine_kinds import VLLM
from billing.wire.evidence import RunningEngine
from billing.wire.instance_entry import EngineLoad, InstanceEntry, InstanceStatus, read_snapshot
from billing.wire.redis_address import parse_redis_url
from billing.wire.routes import POOLING_ROUTES
from billing.wire.tokens import CounterPair
from serving import registry
from serving.engine_process import EngineStartFailed
from serving.engine_watch import WatchLimits
from serving.launch import connect
from tests.fixtures.valkey import ValkeyProcess
from tests.serving.conftest import MODEL, Workers, eventually, fast_times, is_running

READY, DOWN, DRAINING, STARTING = (
    InstanceStatus.READY,
    InstanceStatus.DOWN,
    InstanceStatus.DRAINING,
    InstanceStatus.STARTING,
)
# So that on a busy machine answers that come late are not what ends an engine.
PATIENT = WatchLimits(poll_s=0.05, answer_timeout_s=10, unanswered_most=1_000)


async def _now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds * 1000 + micros // 1000)


async def test_an_engine_is_ready_only_after_it_produced_a_token_and_the_probe_is_in_the_baseline(
    workers: Workers,
) -> None:
    worker = workers.make("--start-seconds", "0.3")
    worker.start()
    starting = await worker.entry_with(STARTING)
    assert starting.baseline == CounterPair()
    ready = await worker.entry_with(READY)
    assert ready.baseline == CounterPair(prompt=2, generation=1)
    assert (ready.model, ready.pool, ready.cell, ready.url, ready.key) == (
        "m",
        "pool-m",
        "cell-m",
        worker.plan.url,
        "engine-key",
    )
    assert ready.abort
    assert ready.priority
    assert (ready.engine, ready.engine_model) == (VLLM, MODEL.engine_model)
    assert ready.routes == MODEL.engine_routes
    assert ready.epoch == starting.epoch
    assert worker.metric("engine_up") == 1


async def test_an_engine_that_pools_is_registered_for_its_routes_in_a_pool_of_its_own(
    workers: Workers,
) -> None:
    """And as one that cannot stop a request by id."""
    model = replace(MODEL, routes=frozenset({"chat", "embeddings"})).pooling_part()
    worker = workers.make("--start-seconds", "60", model=model)
    worker.start()
    entry = await worker.entry_with(STARTING)
    assert entry.routes == set(POOLING_ROUTES)
    assert (entry.model, entry.pool, entry.cell, entry.abort) == ("m", "pool-m/pooling", "cell-m", False)


async def test_what_runs_is_said_for_evidence_while_it_runs(workers: Workers, redis: Redis) -> None:
    (workers.folder / "model").mkdir()
    (workers.folder / "model" / "weights").write_bytes(b"w")
    worker = workers.make()
    worker.start()
    ready = await worker.entry_with(READY)
    raw = await eventually(lambda: redis.hget(redis_keys.EVIDENCE, "m-test"))
    said = RunningEngine.from_json(raw)
    assert (said.epoch, said.engine) == (ready.epoch, VLLM)
    assert said.command == worker.plan.command.argv
    assert worker.plan.url.removeprefix("http://") in said.listening
    assert said.weights == {"weights": hashlib.sha256(b"w").hexdigest()}
    assert said.requests_logged  # the stand-in promises nothing
    worker.subject.request_stop()
    await worker.stopped()
    assert await redis.hget(redis_keys.EVIDENCE, "m-test") is None


async def test_load_is_published_and_the_lease_renewed(workers: Workers, redis: Redis) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    await worker.tell(running=3)
    before_ms = await _now_ms(redis)
    loaded = await worker.entry_with(READY, load=EngineLoad(running=3, waiting=0, kv_usage=0.125))
    assert loaded.lease_until_ms > first.lease_until_ms

    async def renewed() -> InstanceEntry | None:
        entry = await worker.entry()
        return entry if entry is not None and entry.lease_until_ms >= before_ms + 5_000 else None

    renewal = await eventually(renewed)
    assert renewal.lease_until_ms <= await _now_ms(redis) + 5_000
    assert worker.metric("requests_running") == 3


async def test_a_dead_engine_is_shown_down_and_started_again_as_a_new_epoch(workers: Workers) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    first_pids = worker.pids()
    await worker.tell(tokens=40)
    await eventually(lambda: worker.subject.last_counters == CounterPair(2, 41))
    await worker.tell(do="die")
    down = await worker.entry_with(DOWN)
    assert down.final is not None
    assert (down.final.epoch, down.final.counters, down.final.exact) == (
        first.epoch,
        CounterPair(2, 41),
        False,
    )
    again = await worker.entry_with(READY)
    assert again.epoch != first.epoch
    assert again.baseline == CounterPair(2, 1)
    assert again.final is None
    assert again.earlier == (down.final,)
    assert worker.metric("engine_restarts_total") == 1
    assert not any(is_running(pid) for pid in first_pids)


@pytest.mark.parametrize("fault", ["unhealthy", "hang"])
async def test_an_engine_that_is_up_but_does_not_work_is_replaced(workers: Workers, fault: str) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    first_pids = worker.pids()
    await worker.tell(do=fault)
    await worker.entry_with(DOWN)
    again = await worker.entry_with(READY)
    assert again.epoch != first.epoch
    assert not any(is_running(pid) for pid in first_pids)


async def test_an_engine_whose_child_alone_is_killed_is_noticed_by_its_health(workers: Workers) -> None:
    worker = workers.make(times=fast_times(watch=PATIENT))
    worker.start()
    await worker.entry_with(READY)
    await worker.tell(do="unhealthy")
    await worker.entry_with(DOWN)
    await eventually(lambda: any("not healthy" in note for note in worker.notes))


async def test_stop_drains_first_and_leaves_the_last_counters_for_a_minute(
    workers: Workers, redis: Redis
) -> None:
    worker = workers.make()
    worker.start()
    ready = await worker.entry_with(READY)
    await worker.tell(running=2)
    await worker.entry_with(READY, load=EngineLoad(2, 0, 0.125))
    before_ms = await _now_ms(redis)
    worker.subject.request_stop()
    await worker.entry_with(DRAINING)
    assert all(is_running(pid) for pid in worker.pids()), "requests in flight keep their engine"
    await worker.tell(tokens=9, running=0)
    await worker.stopped()
    left = await worker.entry()
    assert left is not None
    assert left.status is DOWN
    assert left.final is not None
    assert (left.final.epoch, left.final.counters, left.final.baseline) == (
        ready.epoch,
        CounterPair(2, 10),
        CounterPair(2, 1),
    )
    assert left.final.exact
    assert before_ms + 60_000 <= left.lease_until_ms <= await _now_ms(redis) + 60_000
    assert not any(is_running(pid) for pid in worker.pids())


async def test_draining_ends_when_its_time_is_up_and_says_that_the_counters_are_not_final(
    workers: Workers,
) -> None:
    worker = workers.make(times=fast_times(drain_s=0.2))
    worker.start()
    await worker.entry_with(READY)
    await worker.tell(running=1)
    worker.subject.request_stop()
    await worker.stopped()
    left = await worker.entry()
    assert left is not None
    assert left.final is not None
    assert not left.final.exact
    assert any("cut off" in note for note in worker.notes)


async def test_a_second_stop_does_not_wait_for_requests_in_flight(workers: Workers) -> None:
    worker = workers.make(times=fast_times(drain_s=600))
    worker.start()
    await worker.entry_with(READY)
    await worker.tell(running=1)
    await worker.entry_with(READY, load=EngineLoad(1, 0, 0.125))
    worker.subject.request_stop()
    await worker.entry_with(DRAINING)
    worker.subject.request_stop()
    await worker.stopped()
    assert not any(is_running(pid) for pid in worker.pids())


async def test_a_stop_while_the_engine_starts_ends_it_at_once_and_leaves_no_entry(workers: Workers) -> None:
    worker = workers.make("--start-seconds", "600")
    worker.start()
    await worker.entry_with(STARTING)
    await eventually(lambda: worker.pids_file.exists() and worker.pids())
    worker.subject.request_stop()
    await worker.stopped()
    assert await worker.entry() is None
    assert not any(is_running(pid) for pid in worker.pids())


async def test_a_stop_between_two_starts_does_not_wait_for_the_pause(workers: Workers) -> None:
    worker = workers.make()
    worker.start()
    await worker.entry_with(READY)
    await worker.tell(do="die")
    await worker.entry_with(DOWN)
    worker.subject.request_stop()
    await worker.stopped()


async def test_an_engine_whose_log_was_deleted_is_started_again_like_any(workers: Workers) -> None:
    worker = workers.make(times=fast_times(watch=PATIENT))
    worker.start()
    first = await worker.entry_with(READY)
    worker.plan.log_path.unlink()
    await worker.tell(do="die")
    await worker.entry_with(DOWN)
    again = await worker.entry_with(READY)
    assert again.epoch != first.epoch
    assert any("ended with status 3: its log is empty" in note for note in worker.notes), worker.notes


async def test_a_start_that_the_machine_refuses_is_tried_again(workers: Workers) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    folder = worker.plan.log_path.parent
    worker.plan.log_path.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    await worker.tell(do="die")
    await eventually(lambda: worker.metric("engine_start_failures_total") == 1)
    folder.unlink()
    again = await worker.entry_with(READY)
    assert again.epoch != first.epoch
    await eventually(
        lambda: any("cannot be started" in note and str(folder) in note for note in worker.notes)
    )


async def test_a_first_start_that_fails_says_why_and_leaves_no_entry(workers: Workers) -> None:
    worker = workers.make("--fail-with", "the weights are of another model")
    with pytest.raises(EngineStartFailed, match="ended with status 1") as failed:
        await worker.subject.run()
    assert "RuntimeError: the weights are of another model" in str(failed.value)
    assert str(worker.plan.log_path) in str(failed.value)
    assert await worker.entry() is None
    assert not any(is_running(pid) for pid in worker.pids())


async def test_a_start_that_takes_too_long_fails(workers: Workers) -> None:
    worker = workers.make("--start-seconds", "600", times=fast_times(start_timeout_s=3))
    with pytest.raises(EngineStartFailed, match="did not answer within"):
        await worker.subject.run()
    assert not any(is_running(pid) for pid in worker.pids())


async def test_what_an_earlier_worker_left_unread_is_carried_on(workers: Workers) -> None:
    worker = workers.make()
    worker.start()
    await worker.entry_with(READY)
    worker.subject.request_stop()
    await worker.stopped()
    left = await worker.entry()
    assert left is not None
    next_worker = workers.make(previous=left)
    next_worker.start()
    ready = await next_worker.entry_with(READY)
    assert ready.earlier == (left.final,)


async def test_at_most_eight_ended_epochs_are_carried_on(workers: Workers) -> None:
    worker = workers.make()
    worker.start()
    await worker.entry_with(READY)
    worker.subject.request_stop()
    await worker.stopped()
    left = await worker.entry()
    assert left is not None
    assert left.final is not None
    crowded = replace(left, earlier=tuple(replace(left.final, epoch=str(number)) for number in range(8)))
    next_worker = workers.make(previous=crowded)
    next_worker.start()
    ready = await next_worker.entry_with(READY)
    assert [ended.epoch for ended in ready.earlier] == [left.final.epoch, *"0123456"]


async def test_redis_going_away_stops_nothing_and_the_entry_comes_back_with_it(
    own_valkey: ValkeyProcess, workers: Workers
) -> None:
    async with connect(parse_redis_url(own_valkey.url)) as own:
        workers.redis = own
        worker = workers.make()
        worker.start()
        ready = await worker.entry_with(READY)
        own_valkey.kill()
        await eventually(lambda: any("Redis does not answer" in note for note in worker.notes))
        assert worker.metric("redis_up") == 0
        assert worker.metric("engine_up") == 1
        assert all(is_running(pid) for pid in worker.pids())
        await asyncio.to_thread(own_valkey.start)
        await own.delete(redis_keys.INSTANCES)
        back = await worker.entry_with(READY)
        assert back.epoch == ready.epoch
        await eventually(lambda: any("Redis is back" in note for note in worker.notes))
        assert worker.metric("redis_up") == 1
        worker.subject.request_stop()
        await worker.stopped()
        own_valkey.stop()


async def test_an_entry_nobody_renews_is_gone_after_its_lease(workers: Workers, redis: Redis) -> None:
    worker = workers.make()
    worker.start()
    entry = await worker.entry_with(READY)
    raw = await redis.hgetall(redis_keys.INSTANCES)
    assert [live.instance for live in read_snapshot(raw, await _now_ms(redis))] == [entry.instance]
    assert read_snapshot(raw, int(time.time() * 1000) + 6_000) == []


async def _order_restart(redis: Redis, epoch: str, drain_s: float = 20) -> None:
    order = json.dumps({"epoch": epoch, "drain_s": drain_s})
    await redis.hset(redis_keys.RESTARTS, "m-test", order)


async def test_a_restart_drains_and_hands_the_counters_to_the_next_worker(
    workers: Workers, redis: Redis
) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    await worker.tell(running=1, tokens=40)
    await worker.entry_with(READY, load=EngineLoad(running=1, waiting=0, kv_usage=0.125))
    await _order_restart(redis, first.epoch)
    await worker.entry_with(DRAINING)
    await worker.tell(running=0)
    assert worker.running is not None
    assert await asyncio.wait_for(worker.running, 30)
    left = await worker.entry()
    assert left is not None
    assert left.final is not None
    assert (left.final.epoch, left.final.counters, left.final.exact) == (
        first.epoch,
        CounterPair(2, 41),
        True,
    )
    again = workers.make(previous=left)
    again.start()
    ready = await again.entry_with(READY)
    assert ready.epoch != first.epoch
    assert [ended.epoch for ended in ready.earlier] == [first.epoch]


async def test_a_restart_of_an_earlier_engine_is_of_the_past(workers: Workers, redis: Redis) -> None:
    await _order_restart(redis, "of-before")
    worker = workers.make()
    worker.start()
    ready = await worker.entry_with(READY)
    before_ms = await _now_ms(redis)

    async def renewed() -> bool:
        entry = await worker.entry()
        return entry is not None and entry.lease_until_ms > before_ms + 5_500

    await eventually(renewed)
    entry = await worker.entry()
    assert entry is not None
    assert (entry.status, entry.epoch) == (READY, ready.epoch)


async def test_a_stop_while_it_drains_for_a_restart_is_a_stop_that_waits_for_requests(
    workers: Workers, redis: Redis
) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    await worker.tell(running=1)
    await _order_restart(redis, first.epoch)
    await worker.entry_with(DRAINING)
    worker.subject.request_stop()
    await worker.tell(running=0)
    assert worker.running is not None
    assert not await asyncio.wait_for(worker.running, 30)
    left = await worker.entry()
    assert left is not None
    assert left.final is not None
    assert left.final.exact


async def test_an_instance_that_was_replaced_does_not_come_back(workers: Workers, redis: Redis) -> None:
    """Its engine is stopped, its requests are cut off, and its entry stays as it was."""
    worker = workers.make()
    worker.start()
    ready = await worker.entry_with(READY)
    await worker.tell(running=1)
    pids = worker.pids()
    await redis.hset(redis_keys.FENCED, "m-test", "1")
    assert worker.running is not None
    assert not await asyncio.wait_for(worker.running, 10)
    assert not any(is_running(pid) for pid in pids)
    left = await worker.entry()
    assert left is not None
    assert (left.status, left.epoch, left.final) == (READY, ready.epoch, None)
    again = workers.make(previous=left)
    again.start()
    assert again.running is not None
    await asyncio.wait_for(again.running, 30)
    assert await worker.entry() == left


async def test_one_that_has_renewed_its_lease_is_not_fenced(workers: Workers, redis: Redis) -> None:
    worker = workers.make()
    worker.start()
    ready = await worker.entry_with(READY)
    assert not await registry.fence_lapsed(redis, replace(ready, lease_until_ms=ready.lease_until_ms - 1))
    assert await redis.hlen(redis_keys.FENCED) == 0
    gone = replace(ready, instance="gone")
    await registry.publish(redis, gone)
    left = await registry.find(redis, "gone")
    assert left is not None
    assert await registry.fence_lapsed(redis, left)
    with pytest.raises(registry.Fenced):
        await registry.publish(redis, gone)
