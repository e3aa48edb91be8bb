"""An Idempotency-Key in Redis is bound to one request, however many come with it at once, and to no more of
them than its tenant may have.
"""

import asyncio
from collections import Counter
from typing import Any

import redis

from billing.cell.asks import IdempotencyAsk, IdempotencyEnd
from billing.cell.execute import execute
from billing.cell.replies import (
    KeyClaimed,
    KeyEnded,
    KeyOfAnother,
    KeyRunning,
    TooManyKeys,
    parse_idempotency_claim,
)
from billing.cell.scripts import idempotency_claim_call, idempotency_end_call
from billing.wire import redis_keys
from gateway.redis.pipe import RedisPipe

TENANT = "ten_1"
DAY_MS = 86_400_000
BOUND, ANSWER, USED = redis_keys.idempotency_keys(TENANT, "h1")


def asked(request_id: str, fingerprint: str = "f", keys_max: int = 10) -> IdempotencyAsk:
    return IdempotencyAsk(
        request_id=request_id, fingerprint=fingerprint, cell="m1", gateway="g1", keys_max=keys_max
    )


def claim(client: redis.Redis, request_id: str, key: str = "h1", **terms: Any) -> Any:
    return parse_idempotency_claim(
        execute(client, idempotency_claim_call(TENANT, key, asked(request_id, **terms)))
    )


def end(client: redis.Redis, request_id: str, ended: str | None = None, answer: bytes = b"") -> str:
    told = IdempotencyEnd(request_id=request_id, answer_ms=5_000, bytes_max=100)
    if ended is not None:
        told["ended"] = ended
    status: str = execute(client, idempotency_end_call(TENANT, "h1", told, answer))[0]
    return status


async def test_of_a_hundred_at_once_through_two_connections_one_is_the_first(
    valkey: redis.Redis, valkey_url: str
) -> None:
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    replies = await asyncio.gather(
        *(pipes[n % 2].execute(*idempotency_claim_call(TENANT, "h1", asked(f"r{n}"))) for n in range(100))
    )
    found = [parse_idempotency_claim(reply) for reply in replies]
    assert Counter(type(each) for each in found) == {KeyClaimed: 1, KeyRunning: 99}
    first = f"r{[type(each) for each in found].index(KeyClaimed)}"
    assert {(each.request_id, each.cell, each.gateway) for each in found if isinstance(each, KeyRunning)} == {
        (first, "m1", "g1")
    }
    assert isinstance(claim(valkey, first), KeyClaimed), "it is the first, however often it asks"
    assert valkey.hget(USED, "keys") == "1"
    for pipe in pipes:
        await pipe.close()


def test_a_key_is_bound_for_a_day_and_tells_how_its_request_ended(valkey: redis.Redis) -> None:
    claim(valkey, "a")
    assert DAY_MS - 60_000 < valkey.pttl(BOUND) <= DAY_MS
    assert isinstance(claim(valkey, "b", fingerprint="another"), KeyOfAnother)
    assert end(valkey, "b", "{}") == "missing", "of another request nothing is told"
    assert end(valkey, "a", '{"stream":false}', b"x" * 60) == "stored"
    assert end(valkey, "a", "{}") == end(valkey, "a") == "missing", "an end is told once"
    found = claim(valkey, "b")
    assert (found.request_id, found.ended, found.answer) == ("a", '{"stream":false}', "x" * 60)
    assert 4_000 < valkey.pttl(ANSWER) <= 5_000
    valkey.delete(ANSWER)
    again = claim(valkey, "b")
    assert again == KeyEnded(again.now_ms, "a", found.ended, "")


def test_answers_of_a_day_fit_into_what_their_tenant_may_store(valkey: redis.Redis) -> None:
    claim(valkey, "a")
    valkey.hset(USED, "bytes", 90)
    assert end(valkey, "a", "{}", b"x" * 11) == "ended"
    valkey.delete(BOUND)
    claim(valkey, "b")
    assert end(valkey, "b", "{}", b"x" * 10) == "stored"


def test_a_tenant_has_so_many_new_keys_a_day_and_what_was_freed_does_not_count(valkey: redis.Redis) -> None:
    assert isinstance(claim(valkey, "a", keys_max=2), KeyClaimed)
    assert isinstance(claim(valkey, "b", "h2", keys_max=2), KeyClaimed)
    refused = claim(valkey, "c", "h3", keys_max=2)
    assert isinstance(refused, TooManyKeys)
    assert 0 < refused.retry_after_ms <= DAY_MS
    assert isinstance(claim(valkey, "c", keys_max=2), KeyRunning), "a bound key is no new one"
    assert end(valkey, "a") == "freed"
    assert end(valkey, "a") == "missing"
    assert isinstance(claim(valkey, "c", "h3", keys_max=2), KeyClaimed)
    assert isinstance(claim(valkey, "d", "h4", keys_max=2), TooManyKeys)
    valkey.hincrby(USED, "day", -1)
    assert isinstance(claim(valkey, "d", "h4", keys_max=2), KeyClaimed)
    assert valkey.hget(USED, "keys") == "1"
