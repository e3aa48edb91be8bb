"""Limits of any kind and window: exact over gateways, held at admission and put right at the end, and kept
when they change.
"""

import asyncio
from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.cell import scripts
from billing.cell.execute import execute
from billing.cell.replies import LimitKind, LimitReached, Renewed, Reserved, Settled, parse_reserve
from billing.cell.scripts import BucketLevel
from billing.wire.limits import DAY_S, FIELDS, MINUTE_S, WHILE_OPEN, Limit, Limits
from billing.wire.tokens import Tokens
from gateway.redis.pipe import RedisPipe
from tests.billing.cell.plan import set_room, sign
from tests.billing.cell.requests import CELL, CellRequest, empty, limits_of
from tests.billing.cell.test_upgrade import Earlier

WINDOWED = [each for each in FIELDS if each.window_s > WHILE_OPEN]


def request(client: redis.Redis, name: str, limits: Limits, tokens: int = 1_000, **more: Any) -> CellRequest:
    return CellRequest(client=client, request_id=name, tenant_limits=limits, tokens=tokens, **more)


def only(kind: LimitKind, window_s: int, amount: int) -> Limits:
    return Limits((Limit(kind, window_s, amount),))


def age(client: redis.Redis, key: str, seconds: float) -> None:
    """As if so much time had passed for a bucket."""
    for name in ("t", "at"):
        stored = client.hget(key, name)
        if stored is not None:
            client.hset(key, name, int(float(str(stored)) - seconds * 1e6))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
@pytest.mark.parametrize("whose", ["tenant_limits", "key_limits"])
async def test_two_gateways_admit_exactly_the_limit(
    valkey: redis.Redis, valkey_url: str, field: Any, whose: str
) -> None:
    cost = {LimitKind.UNITS: 1_000, LimitKind.TOKENS: 1_000}.get(field.kind, 1)
    limits: dict[str, Any] = {whose: only(field.kind, field.window_s, 20 * cost)}
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    commands = [
        CellRequest(client=valkey, request_id=f"r{n}", tokens=1_000, **limits).reserve_command(1_000)
        for n in range(60)
    ]
    replies = await asyncio.gather(*(pipes[n % 2].execute(*commands[n]) for n in range(60)))
    assert Counter(type(parse_reserve(reply)).__name__ for reply in replies) == {
        "Reserved": 20,
        "LimitReached": 40,
    }
    refused = next(reply for raw in replies if isinstance(reply := parse_reserve(raw), LimitReached))
    assert (refused.limit, refused.window_s) == (field.kind, field.window_s)
    for pipe in pipes:
        await pipe.close()


@pytest.mark.parametrize("window_s", [MINUTE_S, DAY_S])
def test_tokens_are_held_for_all_that_may_come_and_put_right_at_the_end(
    valkey: redis.Redis, window_s: int
) -> None:
    limits = only(LimitKind.TOKENS, window_s, 5_000)
    one = request(valkey, "r", limits, tokens=4_000)
    held = one.reserve(1)
    assert isinstance(held, Reserved)
    assert held.tenant.levels[0] == 4_000
    assert isinstance(request(valkey, "s", limits, tokens=2_000).reserve(1), LimitReached)
    assert isinstance(one.checkpoint(Tokens(100, 80, 20), 1), Renewed)
    assert isinstance(request(valkey, "s", limits, tokens=2_000).reserve(1), LimitReached)
    assert isinstance(one.settle(1, Tokens(100, 80, 50)), Settled)
    after = request(valkey, "t", limits, tokens=2_000).reserve(1)
    assert isinstance(after, Reserved)
    # Tokens from a cache count like others.
    assert after.tenant.levels[0] == pytest.approx(2_150, rel=0.01)


def test_more_than_was_held_is_charged_as_debt(valkey: redis.Redis) -> None:
    limits = only(LimitKind.TOKENS, DAY_S, 1_000)
    one = request(valkey, "r", limits, tokens=10)
    one.reserve(1)
    one.settle(1, Tokens(900, 0, 600))
    refused = request(valkey, "s", limits, tokens=1).reserve(1)
    assert isinstance(refused, LimitReached)
    # 501 tokens have to drain at 1,000 a day.
    assert refused.retry_after_ms == pytest.approx(0.501 * DAY_S * 1000, rel=0.01)


def test_a_request_that_can_never_pass_is_told_so(valkey: redis.Redis) -> None:
    refused = request(valkey, "r", only(LimitKind.TOKENS, MINUTE_S, 999)).reserve(1)
    assert isinstance(refused, LimitReached)
    assert refused.retry_after_ms is None


def test_what_a_contract_takes_counts_for_requests_and_not_for_tokens(valkey: redis.Redis) -> None:
    sign(valkey, "acme", 10**9)
    limits = Limits.of(tokens_per_day=10, units_per_day=1, requests_per_day=5)
    reply = request(valkey, "r", limits).reserve(5_000)
    assert isinstance(reply, Reserved)
    assert reply.grant.class_ == "reserved"
    by_limit = dict(
        zip(((each.kind, each.window_s) for each in limits.all), reply.tenant.levels, strict=False)
    )
    assert by_limit == {
        (LimitKind.TOKENS, DAY_S): 0,
        (LimitKind.UNITS, DAY_S): 0,
        (LimitKind.REQUESTS, DAY_S): 1,
    }


def test_a_day_drains_evenly_and_outlives_an_idle_hour(valkey: redis.Redis) -> None:
    limits = only(LimitKind.REQUESTS, DAY_S, 24)
    for n in range(24):
        one = request(valkey, f"r{n}", limits)
        assert isinstance(one.reserve(), Reserved)
        one.settle()
    refused = request(valkey, "over", limits).reserve()
    assert isinstance(refused, LimitReached)
    assert refused.retry_after_ms == pytest.approx(3_600_000, rel=0.01)
    bucket = request(valkey, "over", limits).keys.tenant_bucket
    assert valkey.pttl(bucket) > 23 * 3_600_000
    age(valkey, bucket, 3_600)
    assert isinstance(request(valkey, "next", limits).reserve(), Reserved)
    assert isinstance(request(valkey, "last", limits).reserve(), LimitReached)


@pytest.mark.parametrize("field", WINDOWED, ids=lambda field: field.name)
def test_a_changed_limit_keeps_its_level(valkey: redis.Redis, field: Any) -> None:
    cost = 1_000 if field.kind is not LimitKind.REQUESTS else 1
    for n in range(3):
        request(valkey, f"r{n}", only(field.kind, field.window_s, 3 * cost)).reserve(1_000)
    raised = request(valkey, "raised", only(field.kind, field.window_s, 4 * cost))
    assert isinstance(raised.reserve(1_000), Reserved)
    assert isinstance(
        request(valkey, "over", only(field.kind, field.window_s, 4 * cost)).reserve(1_000), LimitReached
    )


def test_a_lifted_limit_is_forgotten_and_others_stay(valkey: redis.Redis) -> None:
    both = Limits.of(tokens_per_day=2_000, requests_per_day=2)
    request(valkey, "a", both).reserve()
    request(valkey, "b", Limits.of(requests_per_day=2)).reserve()
    again = request(valkey, "c", both).reserve()
    assert isinstance(again, LimitReached)
    assert again.limit is LimitKind.REQUESTS


@pytest.mark.parametrize("window_s", [MINUTE_S, DAY_S])
def test_a_reservation_that_was_lost_counts_in_the_day_and_not_twice_in_the_minute(
    valkey: redis.Redis, window_s: int
) -> None:
    limits = only(LimitKind.TOKENS, window_s, 10_000)
    one = request(valkey, "r", limits, tokens=700)
    execute(valkey, one.restore_command(1))
    one.settle(1, Tokens(500, 0, 500))
    level = float(valkey.hget(one.keys.tenant_bucket, f"tokens:{window_s}") or 0)
    assert level == pytest.approx(1_000 if window_s == DAY_S else 300, abs=30)


def test_levels_of_every_kind_are_raised_to_the_ledgers(valkey: redis.Redis) -> None:
    limits = Limits.of(tokens_per_day=5_000, requests_per_minute=10)
    one = request(valkey, "r", limits)
    levels = [(each, 4_500.0 if each.kind is LimitKind.TOKENS else 1.0) for each in limits.all]
    execute(valkey, scripts.rebuild_call(CELL, "run", [BucketLevel(one.keys.tenant_bucket, levels)]))
    refused = one.reserve()
    assert isinstance(refused, LimitReached)
    assert refused.limit is LimitKind.TOKENS
    assert valkey.pttl(one.keys.tenant_bucket) > 20 * 3_600_000


def test_limits_that_an_earlier_gateway_does_not_know_stay_when_it_serves_beside(valkey: redis.Redis) -> None:
    limits = Limits.of(requests_per_minute=10, tokens_per_day=3_000)
    request(valkey, "n1", limits).reserve()
    earlier = Earlier(request(valkey, "e1", limits_of(requests=10)))
    assert earlier.reserve(1_000) == "reserved"
    assert earlier.settle(1_000) == "settled"
    assert Earlier(request(valkey, "n1", limits)).settle(500) == "settled"
    request(valkey, "n2", limits).reserve()
    third = request(valkey, "n3", limits).reserve()
    assert isinstance(third, Reserved)
    assert sorted(third.tenant.levels) == pytest.approx([4, 3_000], rel=0.01)
    assert isinstance(request(valkey, "n4", limits).reserve(), LimitReached)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 3_000), st.booleans()), max_size=25),
    st.sampled_from([each for each in WINDOWED if each.window_s == DAY_S]),
)
def test_a_level_is_the_sum_of_what_was_used_and_is_held(
    valkey: redis.Redis, steps: list[tuple[int, int, bool]], field: Any
) -> None:
    """Over a moment in which next to nothing drains: each is admitted exactly if it fits."""
    empty(valkey)
    set_room(valkey, {"i-1": (1_000, 1_000)})
    amount = {LimitKind.REQUESTS: 12, LimitKind.UNITS: 12_000_000, LimitKind.TOKENS: 12_000}[field.kind]
    limits = only(field.kind, DAY_S, amount)
    level = 0
    for number, (held, used, ends) in enumerate(steps):
        one = request(valkey, f"r{number}", limits, tokens=held)
        cost = {LimitKind.REQUESTS: 1, LimitKind.UNITS: held * 1_000, LimitKind.TOKENS: held}[field.kind]
        reply = one.reserve(held * 1_000)
        assert isinstance(reply, Reserved if level + cost <= amount else LimitReached)
        if isinstance(reply, Reserved):
            level += cost
            if ends:
                one.settle(used * 1_000, Tokens(0, 0, used))
                level += {
                    LimitKind.REQUESTS: 0,
                    LimitKind.UNITS: (used - held) * 1_000,
                    LimitKind.TOKENS: used - held,
                }[field.kind]
    final = request(valkey, "last", limits, tokens=0).reserve(0)
    added = 1 if field.kind is LimitKind.REQUESTS and isinstance(final, Reserved) else 0
    assert final.tenant.levels[0] == pytest.approx(level + added, rel=0.001, abs=1)  # type: ignore[union-attr]
