"""The checkpoint round on its own, over real Valkey: what it has not written it writes again, and one
request does not stop the others'.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise

import pytest
import redis

from billing.cell.scripts import CellKeys, Claim, reserve_call
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.limits import Limits
from billing.wire.tokens import Weights
from billing.wire.usage_event import CapacityClass, EventHead
from gateway.authenticate import Caller
from gateway.catalogue.entries import ApiKey, LimitTable, Model, OutagePolicy, Tenant
from gateway.checkpoint import Checkpointer, Deadlines
from gateway.exchange import Ended, Exchange, Request, Resumable
from gateway.protocol import parse_request
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.upstream.attempt import Attempt
from gateway.upstream.progress import Progress
from tests.fixtures.valkey import ValkeyProcess

CELL = "sim"
WEIGHTS = Weights(1, 1000, 100, 4000)
MODEL = Model(
    name=CELL,
    pool=CELL,
    cell=CELL,
    visible="everyone",
    owner=None,
    routes=frozenset({"chat"}),
    engine_model=CELL,
    context_tokens=4096,
    vocabulary_tokens=None,
    default_max_tokens=256,
    weights=WEIGHTS,
    chat_template_kwargs=frozenset(),
    created=0,
    active=True,
)
CALLER = Caller(
    ApiKey(
        key_id="key_a",
        key_hash="",
        tenant="ten_a",
        project="default",
        expires_at_ms=None,
        limits=LimitTable({}),
    ),
    Tenant(
        tenant="ten_a",
        kind="external",
        active=True,
        on_demand=True,
        outage=OutagePolicy(),
        weight=1,
        limits=LimitTable({}),
    ),
)
BODY = (
    b'{"model":"sim","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":9,'
    b'"service_tier":"flex"}'
)


def instance(name: str) -> InstanceEntry:
    return InstanceEntry(
        instance=name,
        model=CELL,
        pool=CELL,
        cell=CELL,
        url="http://127.0.0.1:9",
        key=None,
        epoch=f"epoch of {name}",
        status=InstanceStatus.READY,
    )


def exchange_of(request_id: str, *, waited_s: float = 0.0) -> Exchange:
    """A flex stream on `i1` that has just been sent there, after it waited for so long."""
    parsed, now = parse_request(ROUTES[Route.CHAT], BODY), time.monotonic()
    head = EventHead(
        request_id=request_id,
        tenant="ten_a",
        project="default",
        key_id="key_a",
        model=CELL,
        pool=CELL,
        cell=CELL,
        instance="i1",
        epoch="epoch of i1",
        route="chat",
        stream=True,
        class_=CapacityClass.FLEX,
        contract=None,
        weights=WEIGHTS,
        samples=1,
        started_ms=1,
        gateway="gw",
    )
    keys = CellKeys.of(CELL, request_id=request_id, tenant="ten_a", key_id="key_a", model=CELL)
    request = Request(
        request_id=request_id, parsed=parsed, caller=CALLER, model=MODEL, keys=keys, started_at=now - waited_s
    )
    made = Exchange(request=request, head=head, attempt=Attempt.on(instance("i1"), parsed, request_id))
    made.delivery.sent_at = made.attempt.started_at = now
    return made


@pytest.fixture
async def pipe(own_valkey: ValkeyProcess) -> AsyncIterator[RedisPipe]:
    client = RedisPipe(own_valkey.url)
    await client.execute("SET", redis_keys.intact(CELL), "a test")
    yield client
    await client.close()


@pytest.fixture
def stored(own_valkey: ValkeyProcess) -> redis.Redis:
    return redis.Redis(port=own_valkey.port, decode_responses=True)


async def reserved(pipe: RedisPipe, request_id: str) -> Exchange:
    """One that holds its place."""
    made = exchange_of(request_id)
    claim = Claim(tenant="ten_a", candidates=[("i1", "epoch of i1")])
    call = reserve_call(
        made.request.keys, lease_ms=10_000, cost_mu=1000, tenant=Limits(), key=Limits(), claim=claim,
        head=made.head.admission_json(), crash_event=b"{}",
    )  # fmt: skip
    await pipe.execute(*call)
    return made


def _reservation(exchange: Exchange) -> str:
    return redis_keys.reservation(CELL, exchange.request_id)


def checkpointer(pipe: RedisPipe, *exchanges: Exchange, first_token_s: float = 60) -> Checkpointer:
    async def restore(exchange: Exchange, cost_mu: int) -> None:
        raise AssertionError("nothing was lost")

    found = {exchange.request_id: exchange for exchange in exchanges}
    return Checkpointer(
        redis=pipe,
        open_exchanges=found,
        deadlines=Deadlines(600, first_token_s, 30),
        lease_ms=10_000,
        interval_s=0.01,
        progress=Progress(),
        others_ready=lambda _: False,
        restore=restore,
    )


async def test_a_move_that_could_not_be_written_is_written_when_redis_is_back(
    pipe: RedisPipe, own_valkey: ValkeyProcess, stored: redis.Redis
) -> None:
    moved = await reserved(pipe, "req_1")
    written = checkpointer(pipe, moved)
    assert await written.write(time.monotonic()) == 1
    moved.move_to(instance("i2"))
    own_valkey.kill()
    with pytest.raises(RedisUnavailable):
        await written.write(time.monotonic())
    own_valkey.start()
    await pipe.wait_healthy()
    assert await written.write(time.monotonic()) == 1
    assert stored.hget(_reservation(moved), "inst") == "i2"
    assert stored.hgetall(redis_keys.flight(CELL)).items() >= {("o:i1", "0"), ("o:i2", "1")}
    assert await written.write(time.monotonic()) == 0


async def test_one_that_has_moved_gives_up_the_place_it_moved_to(
    pipe: RedisPipe, stored: redis.Redis
) -> None:
    moved = await reserved(pipe, "req_1")
    moved.move_to(instance("i2"))
    await checkpointer(pipe, moved).pause(moved)
    reservation = stored.hgetall(_reservation(moved))
    assert reservation["inst"] == ""
    assert '"instance":"i2"' in reservation["head"]
    assert stored.hmget(redis_keys.flight(CELL), "o:i1", "o:i2") == ["0", "0"]
    assert stored.hget(moved.request.keys.tenant_bucket, "c") == "0"


async def test_a_reservation_that_redis_cannot_read_costs_no_other_its_lease(
    pipe: RedisPipe, stored: redis.Redis
) -> None:
    unread, well = await reserved(pipe, "req_1"), await reserved(pipe, "req_2")
    stored.set(_reservation(unread), "no hash")
    written = checkpointer(pipe, unread, well)
    for _ in range(2):
        stored.hset(_reservation(well), "lease", 0)
        well.recorded.at = 0.0
        await written.write(time.monotonic())
        assert int(str(stored.hget(_reservation(well), "lease"))) > 0


async def test_the_parts_of_a_request_that_has_ended_are_recorded_with_its_ending(
    pipe: RedisPipe, stored: redis.Redis
) -> None:
    """While its engine is asked for the final count of the last part, the gateway may die."""
    parts = [await reserved(pipe, request_id) for request_id in ("req_1", "req_1-2", "req_1-3")]
    for part, following in pairwise(parts):
        part.resumable = Resumable(following=following)
    parts[-1].ended = Ended(Ending.CLIENT_DISCONNECT, 200)
    await checkpointer(pipe, *parts).write(time.monotonic())
    crash_events = [json.loads(str(stored.hget(_reservation(part), "will"))) for part in parts]
    assert [each["ending"] for each in crash_events] == ["client_disconnect"] * 3
    assert [each["http_status"] for each in crash_events] == [200] * 3


async def test_what_waited_for_room_has_all_of_its_time_for_the_first_token(pipe: RedisPipe) -> None:
    waited, silent = exchange_of("req_1", waited_s=100), exchange_of("req_2", waited_s=100)
    silent.delivery.sent_at = silent.attempt.started_at = silent.request.started_at
    stopped = asyncio.Event()
    silent.on_stop = stopped.set
    rounds = asyncio.create_task(checkpointer(pipe, waited, silent, first_token_s=90).run())
    async with asyncio.timeout(10):
        await stopped.wait()
    rounds.cancel()
    with suppress(asyncio.CancelledError):
        await rounds
    assert (silent.stop_ending, waited.stop_ending) == (Ending.DEADLINE, None)
