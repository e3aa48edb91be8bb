"""A worker whose machine a reclaim takes, and gives back."""

import json

from redis.asyncio import Redis

from billing.wire import redis_keys
from billing.wire.instance_entry import EngineLoad, InstanceStatus
from serving.reclaim_watch import DrainOrder, ReclaimWatch
from tests.serving.conftest import Workers, WorkerUnderTest, eventually, is_running

READY, DOWN, DRAINING = InstanceStatus.READY, InstanceStatus.DOWN, InstanceStatus.DRAINING


async def take(redis: Redis, worker: WorkerUnderTest, in_ms: int) -> None:
    seconds, micros = await redis.time()
    order = {"use": "research", "by_ms": seconds * 1000 + micros // 1000 + in_ms, "reclaim": "rec_1"}
    await redis.set(redis_keys.PROJECTION, "here:1")
    await redis.hset(redis_keys.DRAINED, worker.plan.instance, json.dumps(order))


async def give_back(redis: Redis, worker: WorkerUnderTest) -> None:
    await redis.hdel(redis_keys.DRAINED, worker.plan.instance)


async def test_a_machine_that_is_taken_runs_no_engine_after_its_requests_ended_until_it_comes_back(
    workers: Workers, redis: Redis
) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    await worker.tell(running=1, tokens=7)
    await worker.entry_with(READY, load=EngineLoad(1, 0, 0.125))
    await take(redis, worker, 0)
    await worker.entry_with(DRAINING)
    assert all(is_running(pid) for pid in worker.pids()), "a request in flight keeps its engine"
    await worker.tell(running=0)
    down = await worker.entry_with(DOWN)
    assert down.final is not None
    assert (down.final.epoch, down.final.counters.generation, down.final.exact) == (first.epoch, 8, True)
    await eventually(lambda: not any(is_running(pid) for pid in worker.pids()))
    assert len(worker.pids()) == 2
    await give_back(redis, worker)
    again = await worker.entry_with(READY)
    assert again.epoch != first.epoch
    assert again.earlier == (down.final,)
    assert worker.metric("draining") == 0


async def test_an_order_taken_back_before_its_deadline_stops_no_engine(
    workers: Workers, redis: Redis
) -> None:
    worker = workers.make()
    worker.start()
    first = await worker.entry_with(READY)
    await take(redis, worker, 3_600_000)
    await worker.entry_with(DRAINING)
    await give_back(redis, worker)
    again = await worker.entry_with(READY)
    assert again.epoch == first.epoch
    assert len(worker.pids()) == 2


async def test_a_worker_that_starts_on_a_machine_that_is_taken_waits(workers: Workers, redis: Redis) -> None:
    worker = workers.make()
    await take(redis, worker, -1_000)
    worker.start()
    await eventually(lambda: any("given back" in note for note in worker.notes))
    assert not worker.pids_file.exists()
    assert await worker.entry() is None
    await give_back(redis, worker)
    await worker.entry_with(READY)


async def test_a_worker_that_waits_for_its_machine_can_be_stopped(workers: Workers, redis: Redis) -> None:
    worker = workers.make()
    await take(redis, worker, 0)
    worker.start()
    await eventually(lambda: any("given back" in note for note in worker.notes))
    worker.subject.request_stop()
    await worker.stopped()
    assert not worker.pids_file.exists()


async def test_redis_that_was_emptied_gives_no_machine_back(redis: Redis) -> None:
    reclaimed = ReclaimWatch(redis, "m-test", 0.05, print)
    order = {"use": "research", "by_ms": 1, "reclaim": "rec_1"}
    await redis.set(redis_keys.PROJECTION, "here:1")
    await redis.hset(redis_keys.DRAINED, "m-test", json.dumps(order))
    await reclaimed.read_order()
    assert reclaimed.order == DrainOrder("research", 1, "rec_1")
    await redis.flushall()
    assert await reclaimed.read_order() is not None
    assert reclaimed.taken.is_set()
    assert not reclaimed.free.is_set()
    # Billing has written the catalogue again, and this order is not in it.
    await redis.set(redis_keys.PROJECTION, "here:2")
    await reclaimed.read_order()
    assert reclaimed.free.is_set()


async def test_a_machine_that_is_taken_while_its_engine_starts_is_given_at_once(
    workers: Workers, redis: Redis
) -> None:
    worker = workers.make("--start-seconds", "600")
    worker.start()
    await worker.entry_with(InstanceStatus.STARTING)
    await eventually(worker.pids_file.exists)
    await take(redis, worker, 3_600_000)
    down = await worker.entry_with(DOWN)
    assert down.final is None
    await eventually(lambda: not any(is_running(pid) for pid in worker.pids()))
    assert not any("again in" in note for note in worker.notes)
