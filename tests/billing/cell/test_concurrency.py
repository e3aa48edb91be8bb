"""Many callers over two clients: a limit is one limit, however many ask at once."""

import asyncio
from collections import Counter

import pytest
import redis

from billing.cell.replies import parse_reserve, parse_settle
from billing.cell.scripts import Limits
from gateway.redis_pipe import RedisPipe
from tests.billing.cell.requests import CellRequest, usage_events

# A minute's burst of 40 drains 0.7 a second: the test takes far less than the second and a half in which one more would fit.
LIMIT = 40


@pytest.mark.parametrize("callers", [100, 500])
@pytest.mark.parametrize(
    "limits",
    [Limits(requests=LIMIT), Limits(units_mu=LIMIT * 1_000), Limits(concurrency=LIMIT)],
    ids=["requests", "units", "concurrency"],
)
async def test_fault_39_two_gateways_admit_exactly_the_limit(
    valkey: redis.Redis, valkey_url: str, callers: int, limits: Limits
) -> None:
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    commands = [CellRequest(valkey, f"r{n}", tenant_limits=limits).reserve_command(1_000) for n in range(callers)]
    replies = await asyncio.gather(*(pipes[n % 2].execute(*commands[n]) for n in range(callers)))
    outcomes = Counter(type(parse_reserve(reply)).__name__ for reply in replies)
    assert outcomes == {"Reserved": LIMIT, "Refused": callers - LIMIT}
    assert CellRequest(valkey, "r0").tenant_level("c") == LIMIT
    for pipe in pipes:
        await pipe.close()


async def test_the_same_id_from_many_callers_is_charged_and_settled_once(valkey: redis.Redis, valkey_url: str) -> None:
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    request = CellRequest(valkey, "r", tenant_limits=Limits(requests=100, units_mu=10**6, concurrency=100))
    reserved = await asyncio.gather(*(pipes[n % 2].execute(*request.reserve_command(5_000)) for n in range(100)))
    assert Counter(type(parse_reserve(reply)).__name__ for reply in reserved) == {"Reserved": 1, "Replayed": 99}
    settled = await asyncio.gather(*(pipes[n % 2].execute(*request.settle_command(4_000)) for n in range(100)))
    assert Counter(type(parse_settle(reply)).__name__ for reply in settled) == {"Settled": 1, "AlreadySettled": 99}
    assert len(usage_events(valkey)) == 1
    assert request.tenant_level("c") == 0
    for pipe in pipes:
        await pipe.close()
