"""What a call costs: how many commands a script runs, what is done once for many calls, what is not done at
all.
"""

from typing import Any

import pytest
import redis

from billing.cell.replies import LimitReached, Reserved, Settled
from billing.wire import redis_keys
from billing.wire.limits import Limits
from tests.billing.cell.plan import set_room, sign
from tests.billing.cell.requests import CELL, CellRequest, limits_of

LIMITS = limits_of(requests=1_000, units_mu=10**9, concurrency=100)
# Their texts are more than a library keeps (`BYTES_MAX` in once.lua).
MANY = 6_000
_OF_THE_TEST = ("fcall", "info", "config|resetstat")


def request(client: redis.Redis, name: str, **more: Any) -> CellRequest:
    return CellRequest(client=client, request_id=name, tenant_limits=LIMITS, cancels_per_minute=60, **more)


def commands(client: redis.Redis, call: Any) -> int:
    """How many commands a script ran. It runs beside another request, as in a busy cell."""
    client.config_resetstat()
    call()
    stats: Any = client.info("commandstats")
    return sum(
        each["calls"] for name, each in stats.items() if name.removeprefix("cmdstat_") not in _OF_THE_TEST
    )


@pytest.mark.parametrize(
    ("case", "reserve", "settle"),
    [("plain", 10, 11), ("key", 12, 13), ("room", 11, 11), ("contract", 13, 13)],
)
def test_a_call_runs_no_more_commands_than_it_needs(
    valkey: redis.Redis, case: str, reserve: int, settle: int
) -> None:
    more: dict[str, Any] = {"key_limits": LIMITS} if case == "key" else {}
    if case == "room":
        set_room(valkey, {"i-1": (100, 100)})
    if case == "contract":
        sign(valkey, "acme", 10**9)
    # By the third a reservation and its tombstone are copies of templates.
    for name in ("other", "first", "second", "third"):
        assert isinstance(request(valkey, name, **more).reserve(1_000), Reserved)
    for name in ("first", "second", "third"):
        request(valkey, name, **more).settle(1_000)
    one = request(valkey, "r", **more)
    assert commands(valkey, lambda: one.reserve(1_000)) <= reserve
    assert commands(valkey, lambda: one.settle(2_000)) <= settle


def test_a_key_without_limits_has_no_bucket(valkey: redis.Redis) -> None:
    one = request(valkey, "r")
    reply = one.reserve(1_000)
    assert isinstance(reply, Reserved)
    assert (reply.key.open_requests, reply.key.levels) == (0, ())
    assert isinstance(one.settle(2_000), Settled)
    assert valkey.keys("*:k:*") == []


def test_a_concurrency_limit_that_a_key_gets_counts_what_begins_from_then_on(valkey: redis.Redis) -> None:
    before = request(valkey, "before")
    before.reserve()
    limited = [request(valkey, f"r{n}", key_limits=limits_of(concurrency=1)) for n in range(3)]
    assert isinstance(limited[0].reserve(), Reserved)
    # It was never counted, and takes nothing from the count.
    before.settle()
    assert isinstance(limited[1].reserve(), LimitReached)
    limited[0].settle()
    assert isinstance(limited[2].reserve(), Reserved)


def test_a_busy_key_has_its_life_renewed(valkey: redis.Redis) -> None:
    """Not at every call, but long before it would end."""
    keys = (request(valkey, "r").keys.tenant_bucket, redis_keys.flight(CELL), redis_keys.open_requests(CELL))
    request(valkey, "first").reserve()
    for key in keys:
        valkey.pexpire(key, 6 * 86_400_000)
    # A minute later.
    valkey.hincrby(keys[0], "t", -61_000_000)
    valkey.hincrby(keys[1], "kept", -61_000_000)
    request(valkey, "second").reserve()
    assert all(valkey.pttl(key) > 6.9 * 86_400_000 for key in keys)


def test_a_bucket_that_was_idle_lives_as_long_as_what_is_opened_in_it(valkey: redis.Redis) -> None:
    one = request(valkey, "one")
    one.reserve()
    one.settle()
    assert valkey.pttl(one.keys.tenant_bucket) <= 60_000
    request(valkey, "two").reserve()
    assert valkey.pttl(one.keys.tenant_bucket) > 6 * 86_400_000


def test_limits_that_change_hold_from_the_next_request(valkey: redis.Redis) -> None:
    def with_limit(name: str, requests: int) -> CellRequest:
        return CellRequest(client=valkey, request_id=name, tenant_limits=limits_of(requests=requests))

    for requests, admitted in ((1, True), (1, False), (2, True), (2, False), (1, False), (3, True)):
        reply = with_limit(f"r{valkey.dbsize()}-{requests}-{admitted}", requests).reserve()
        assert isinstance(reply, Reserved if admitted else LimitReached)


def test_more_tenants_than_a_library_remembers_keep_each_its_own_limits(valkey: redis.Redis) -> None:
    def of(tenant: str, number: int) -> CellRequest:
        return CellRequest(
            client=valkey, request_id=f"{tenant}-{number}", tenant=tenant, key_id=tenant,
            tenant_limits=Limits.of(requests_per_day=1),
        )  # fmt: skip

    assert isinstance(of("first", 0).reserve(), Reserved)
    calls = valkey.pipeline(transaction=False)
    for number in range(MANY):
        calls.execute_command(*of(f"t{number}", 0).reserve_command())
    assert {reply[0] for reply in calls.execute()} == {"reserved"}
    assert isinstance(of("first", 1).reserve(), LimitReached)
    assert isinstance(of("t0", 1).reserve(), LimitReached)
