"""Valkey killed with -9 and started again: what it acknowledged is there, and a call of unknown outcome
may be repeated.
"""

import asyncio

import redis

from billing.cell.execute import execute
from billing.cell.replies import AlreadySettled, Replayed, Reserved, Settled, parse_reserve, parse_settle
from billing.wire.tokens import Tokens
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from tests.billing.cell.requests import CellRequest, empty, limits_of, usage_events
from tests.fixtures.valkey import ValkeyProcess

LIMITS = limits_of(requests=1_000, units_mu=10**9, concurrency=1_000)


def request(client: redis.Redis, request_id: str) -> CellRequest:
    return CellRequest(client=client, request_id=request_id, tenant_limits=LIMITS, key_limits=LIMITS)


def test_nothing_acknowledged_is_lost_in_a_kill(own_valkey: ValkeyProcess) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        empty(client)
        for n in range(20):
            request(client, f"r{n}").reserve(5_000)
        request(client, "r1").checkpoint(Tokens(5, 0, 3), 17_000)
        for n in range(10, 20):
            request(client, f"r{n}").settle(3_000)
        own_valkey.kill()
        own_valkey.start()
        one = request(client, "r1")
        assert isinstance(one.reserve(5_000), Replayed)
        assert client.hget(one.reservation, "o") == "3"
        assert len(usage_events(client)) == 10
        assert client.zcard(one.keys.open_requests) == one.tenant_level("c") == 10
        assert isinstance(request(client, "r15").settle(3_000), AlreadySettled)
        assert client.pttl(one.reservation) > 0
        for n in range(10):
            assert isinstance(request(client, f"r{n}").settle(3_000), Settled)
        assert one.tenant_level("c") == 0
        assert len(usage_events(client)) == 20


async def test_fault_36_calls_of_unknown_outcome_are_repeated_without_harm(own_valkey: ValkeyProcess) -> None:
    pipe = RedisPipe(own_valkey.url)
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        empty(client)
        requests = [request(client, f"r{n}") for n in range(200)]
        assert isinstance(parse_reserve(await pipe.execute(*requests[0].reserve_command(5_000))), Reserved)
        calls = [pipe.submit(*each.reserve_command(5_000)) for each in requests]
        await calls[20]
        own_valkey.kill()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, list | RedisUnavailable) for outcome in outcomes)
        own_valkey.start()
        await asyncio.wait_for(pipe.wait_healthy(), 5)
        for each in requests:
            assert isinstance(
                parse_reserve(await pipe.execute(*each.reserve_command(5_000))), Reserved | Replayed
            )
        assert requests[0].tenant_level("c") == client.zcard(requests[0].keys.open_requests) == 200
        for each in requests * 2:
            parse_settle(await pipe.execute(*each.settle_command(2_000)))
        assert requests[0].tenant_level("c") == 0
        assert len(usage_events(client)) == 200
    await pipe.close()


def test_a_server_without_the_scripts_is_given_them(valkey: redis.Redis) -> None:
    one = request(valkey, "one")
    valkey.function_flush()
    assert isinstance(parse_reserve(execute(valkey, one.reserve_command())), Reserved)
    valkey.function_flush()
    assert isinstance(parse_settle(execute(valkey, one.settle_command())), Settled)
    assert len(valkey.function_list()) == 1
