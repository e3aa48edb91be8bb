"""Requests left before anything was produced: so many a minute of a tenant, and no more are admitted."""

import pytest
import redis

from billing.cell.replies import LimitReached, LimitScope, Reserved, Settled, Waiting
from billing.wire.limits import LimitKind, Limits
from tests.billing.cell.plan import Listener, set_room, tenants_waiting
from tests.billing.cell.requests import CellRequest, age_bucket, limits_of

CANCELS = 3


def request(client: redis.Redis, request_id: str, cancels: int = CANCELS) -> CellRequest:
    return CellRequest(client=client, request_id=request_id, cancels_per_minute=cancels)


def cancel(client: redis.Redis, count: int, cancels: int = CANCELS) -> None:
    for n in range(count):
        one = request(client, f"c{n}", cancels)
        assert isinstance(one.reserve(), Reserved)
        assert isinstance(one.settle(cancelled=True), Settled)


def test_the_limit_is_exact_and_says_when_to_come_back(valkey: redis.Redis) -> None:
    cancel(valkey, CANCELS)
    one = request(valkey, "r")
    refused = one.reserve()
    assert isinstance(refused, LimitReached)
    assert (refused.scope, refused.limit) == (LimitScope.TENANT, LimitKind.CANCELS)
    assert refused.retry_after_ms is not None
    assert 10_000 < refused.retry_after_ms <= 20_000
    age_bucket(valkey, one.keys.tenant_bucket, refused.retry_after_ms / 1000)
    assert isinstance(one.reserve(), Reserved)


def test_what_ends_otherwise_is_no_cancel(valkey: redis.Redis) -> None:
    for n in range(2 * CANCELS):
        one = request(valkey, f"r{n}")
        assert isinstance(one.reserve(), Reserved)
        one.settle()
    assert isinstance(request(valkey, "after").reserve(), Reserved)


def test_a_cancel_told_twice_counts_once(valkey: redis.Redis) -> None:
    one = request(valkey, "r")
    one.reserve()
    for _ in range(3):
        one.settle(cancelled=True)
    assert one.tenant_level("x") == 1


def test_a_cancel_of_a_lost_reservation_counts_nothing(valkey: redis.Redis) -> None:
    request(valkey, "open").reserve()
    request(valkey, "lost").settle(cancelled=True)
    assert request(valkey, "open").tenant_level("x") == 0


def test_leaving_the_line_is_no_cancel(valkey: redis.Redis, full: CellRequest) -> None:
    """It cost nothing: nobody had begun on it."""
    for n in range(2 * CANCELS):
        one = CellRequest(client=valkey, request_id=f"w{n}", cancels_per_minute=CANCELS, wait_max=9)
        assert isinstance(one.reserve(), Waiting)
        one.leave()
    assert isinstance(
        CellRequest(client=valkey, request_id="again", cancels_per_minute=CANCELS, wait_max=9).reserve(),
        Waiting,
    )


def test_who_waits_when_its_cancels_are_used_up_is_out_of_line(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    waiting = CellRequest(client=valkey, request_id="w", cancels_per_minute=1, wait_max=9)
    assert isinstance(waiting.reserve(), Waiting)
    other = CellRequest(client=valkey, request_id="z", cancels_per_minute=1, sequences=0)
    other.reserve()
    other.settle(cancelled=True)
    assert isinstance(waiting.reserve(), LimitReached)
    assert tenants_waiting(valkey) == {}
    full.settle()
    assert gateway.woken() == []


@pytest.mark.parametrize("limits", [Limits(), limits_of(requests=100, units_mu=10**6, concurrency=10)])
def test_cancels_outlive_the_bucket_of_an_idle_tenant(valkey: redis.Redis, limits: Limits) -> None:
    one = CellRequest(
        client=valkey, request_id="r", cancels_per_minute=1, tenant_limits=limits, key_limits=limits
    )
    one.reserve()
    one.settle(cancelled=True)
    assert valkey.pttl(one.keys.tenant_bucket) > 59_000
    assert valkey.hget(one.keys.key_bucket, "x") is None


def test_without_a_limit_nothing_is_counted(valkey: redis.Redis) -> None:
    set_room(valkey, {"i-1": (50, 50)})
    cancel(valkey, 20, cancels=-1)
    assert request(valkey, "r").tenant_level("x") == 0
    assert isinstance(request(valkey, "r").reserve(), Reserved)


def test_no_cancel_at_all_refuses_for_good(valkey: redis.Redis) -> None:
    refused = request(valkey, "r", cancels=0).reserve()
    assert isinstance(refused, LimitReached)
    assert refused.retry_after_ms is None
