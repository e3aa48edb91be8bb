"""Many callers over two clients: a limit is one limit, however many ask at once."""

import asyncio
from collections import Counter

import pytest
import redis
from redis import asyncio as aioredis

from billing.cell.replies import Reserved, Settled, Waiting, parse_reserve, parse_settle
from billing.wire.limits import Limits
from gateway.redis.pipe import RedisPipe
from tests.billing.cell.plan import TWO, flight, set_room, tenants_waiting
from tests.billing.cell.requests import CellRequest, limits_of, usage_events

# A minute's burst of 40 drains 0.7 a second: the test takes far less than the second and a half in which one
# more would fit.
LIMIT = 40


@pytest.mark.parametrize("callers", [100, 500])
@pytest.mark.parametrize(
    "limits",
    [limits_of(requests=LIMIT), limits_of(units_mu=LIMIT * 1_000), limits_of(concurrency=LIMIT)],
    ids=["requests", "units", "concurrency"],
)
async def test_fault_39_two_gateways_admit_exactly_the_limit(
    valkey: redis.Redis, valkey_url: str, callers: int, limits: Limits
) -> None:
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    commands = [
        CellRequest(client=valkey, request_id=f"r{n}", tenant_limits=limits).reserve_command(1_000)
        for n in range(callers)
    ]
    replies = await asyncio.gather(*(pipes[n % 2].execute(*commands[n]) for n in range(callers)))
    outcomes = Counter(type(parse_reserve(reply)).__name__ for reply in replies)
    assert outcomes == {"Reserved": LIMIT, "LimitReached": callers - LIMIT}
    assert CellRequest(client=valkey, request_id="r0").tenant_level("c") == LIMIT
    for pipe in pipes:
        await pipe.close()


async def test_the_same_id_from_many_callers_is_charged_and_settled_once(
    valkey: redis.Redis, valkey_url: str
) -> None:
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    request = CellRequest(
        client=valkey, request_id="r", tenant_limits=limits_of(requests=100, units_mu=10**6, concurrency=100)
    )
    reserved = await asyncio.gather(
        *(pipes[n % 2].execute(*request.reserve_command(5_000)) for n in range(100))
    )
    assert Counter(type(parse_reserve(reply)).__name__ for reply in reserved) == {
        "Reserved": 1,
        "Replayed": 99,
    }
    settled = await asyncio.gather(
        *(pipes[n % 2].execute(*request.settle_command(4_000)) for n in range(100))
    )
    assert Counter(type(parse_settle(reply)).__name__ for reply in settled) == {
        "Settled": 1,
        "AlreadySettled": 99,
    }
    assert len(usage_events(valkey)) == 1
    assert request.tenant_level("c") == 0
    for pipe in pipes:
        await pipe.close()


ROOM = 20


async def test_five_hundred_callers_share_room_for_twenty_and_each_is_woken(
    valkey: redis.Redis, valkey_url: str
) -> None:
    set_room(valkey, {"i-1": (12, 12), "i-2": (8, 8)})
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    turns = {f"r{n}": asyncio.Event() for n in range(500)}
    in_flight: list[int] = []
    waited = served = 0

    async def hear(ready: asyncio.Event) -> None:
        async with (
            aioredis.Redis.from_url(valkey_url, decode_responses=True) as client,
            client.pubsub() as channel,
        ):
            await channel.subscribe("taas:wake:gw-0", "taas:wake:gw-1")
            async for message in channel.listen():
                if message["type"] == "message":
                    turns[message["data"]].set()
                elif message["data"] == 2:
                    ready.set()

    async def call(number: int) -> None:
        nonlocal waited, served
        pipe = pipes[number % 2]
        request = CellRequest(
            client=valkey,
            request_id=f"r{number}",
            tenant=f"t{number % 7}",
            gateway=f"gw-{number % 2}",
            wait_max=500,
            candidates=TWO,
        )
        reply = parse_reserve(await pipe.execute(*request.reserve_command(1_000)))
        if isinstance(reply, Waiting):
            waited += 1
            await asyncio.wait_for(turns[request.request_id].wait(), 30)
            reply = parse_reserve(await pipe.execute(*request.reserve_command(1_000)))
        assert isinstance(reply, Reserved)
        in_flight.append(1)
        assert sum(in_flight) <= ROOM
        await pipe.execute(b"PING")
        in_flight.pop()
        assert isinstance(parse_settle(await pipe.execute(*request.settle_command(2_000))), Settled)
        served += 1

    ready = asyncio.Event()
    hearing = asyncio.create_task(hear(ready))
    await asyncio.wait_for(ready.wait(), 5)
    await asyncio.gather(*(call(number) for number in range(500)))
    hearing.cancel()
    assert (served, waited) == (500, 500 - ROOM)
    assert flight(valkey) == {}
    assert tenants_waiting(valkey) == {}
    assert valkey.zcard("{c:pool-1}:open") == 0
    assert len(usage_events(valkey)) == 500
    for pipe in pipes:
        await pipe.close()
