"""reserve.lua: each limit at its edge, all or nothing, replays, retry times."""

import pytest
import redis

from billing.cell.replies import AlreadySettled, LimitReached, LimitScope, Replayed, Reserved
from billing.wire.limits import LimitKind, Limits
from tests.billing.cell.requests import CELL, CellRequest, age_bucket, limits_of


def admit(
    client: redis.Redis, count: int, cost_mu: int, tenant: Limits, key: Limits | None = None
) -> list[object]:
    return [
        CellRequest(
            client=client, request_id=f"r{n}", tenant_limits=tenant, key_limits=key or Limits()
        ).reserve(cost_mu)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (limits_of(requests=3), LimitKind.REQUESTS),
        (limits_of(units_mu=3_000), LimitKind.UNITS),
        (limits_of(concurrency=3), LimitKind.CONCURRENCY),
    ],
)
@pytest.mark.parametrize("scope", [LimitScope.TENANT, LimitScope.KEY])
def test_each_limit_admits_up_to_it_and_not_one_past_it(
    valkey: redis.Redis, limits: Limits, kind: LimitKind, scope: LimitScope
) -> None:
    tenant, key = (limits, Limits()) if scope is LimitScope.TENANT else (Limits(), limits)
    *admitted, last = admit(valkey, 4, 1_000, tenant, key)
    assert all(isinstance(reply, Reserved) for reply in admitted)
    assert isinstance(last, LimitReached)
    assert (last.scope, last.limit) == (scope, kind)


def test_a_refusal_by_the_key_consumes_nothing_of_the_tenant(valkey: redis.Redis) -> None:
    tenant, key = limits_of(requests=10, units_mu=10_000, concurrency=10), limits_of(requests=1)
    admit(valkey, 5, 1_000, tenant, key)
    request = CellRequest(client=valkey, request_id="r0")
    assert request.tenant_level("r") == request.key_level("r") == 1
    assert request.tenant_level("u") == 1_000
    assert request.tenant_level("c") == request.key_level("c") == 1
    assert valkey.zcard(request.keys.open_requests) == 1
    assert not valkey.exists(CellRequest(client=valkey, request_id="r1").reservation)


def test_a_replay_charges_nothing_and_says_so(valkey: redis.Redis) -> None:
    request = CellRequest(
        client=valkey, request_id="r", tenant_limits=limits_of(requests=2, units_mu=5_000, concurrency=1)
    )
    assert isinstance(request.reserve(3_000), Reserved)
    replay = request.reserve(3_000)
    assert isinstance(replay, Replayed)
    assert (replay.tenant.open_requests, request.tenant_level("r")) == (1, 1)
    assert request.tenant_level("u") == 3_000


def test_a_settled_id_cannot_be_reserved_again(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r")
    request.reserve()
    request.settle()
    assert isinstance(request.reserve(), AlreadySettled)
    assert request.tenant_level("c") == 0


def test_waiting_the_retry_time_is_enough_and_a_little_less_is_not(valkey: redis.Redis) -> None:
    limits = limits_of(requests=60, units_mu=600_000)
    assert isinstance(
        CellRequest(client=valkey, request_id="a", tenant_limits=limits).reserve(600_000), Reserved
    )
    late = CellRequest(client=valkey, request_id="b", tenant_limits=limits)
    refused = late.reserve(300_000)
    assert isinstance(refused, LimitReached)
    assert refused.limit is LimitKind.UNITS
    assert refused.retry_after_ms is not None
    assert 20_000 < refused.retry_after_ms <= 30_000
    age_bucket(valkey, late.keys.tenant_bucket, refused.retry_after_ms / 1000 - 10)
    again = late.reserve(300_000)
    assert isinstance(again, LimitReached)
    assert again.retry_after_ms is not None
    assert again.retry_after_ms <= 10_000
    age_bucket(valkey, late.keys.tenant_bucket, again.retry_after_ms / 1000)
    assert isinstance(late.reserve(300_000), Reserved)


@pytest.mark.parametrize(
    "limits",
    [limits_of(units_mu=999), limits_of(requests=0), limits_of(concurrency=0), limits_of(units_mu=0)],
)
def test_what_can_never_fit_is_refused_without_a_retry_time(valkey: redis.Redis, limits: Limits) -> None:
    refused = CellRequest(client=valkey, request_id="r", tenant_limits=limits).reserve(1_000)
    assert isinstance(refused, LimitReached)
    assert refused.retry_after_ms is None


def test_the_longest_wait_of_all_limits_is_told(valkey: redis.Redis) -> None:
    admit(valkey, 1, 60_000, limits_of(requests=1, concurrency=1), limits_of(units_mu=60_000))
    refused = CellRequest(
        client=valkey,
        request_id="late",
        tenant_limits=limits_of(requests=1, concurrency=1),
        key_limits=limits_of(units_mu=60_000),
    ).reserve(100)
    assert isinstance(refused, LimitReached)
    assert (refused.scope, refused.limit) == (LimitScope.TENANT, LimitKind.REQUESTS)
    never = CellRequest(
        client=valkey,
        request_id="late",
        tenant_limits=limits_of(requests=1, concurrency=1),
        key_limits=limits_of(units_mu=60_000),
    ).reserve(60_001)
    assert isinstance(never, LimitReached)
    assert (never.scope, never.limit, never.retry_after_ms) == (LimitScope.KEY, LimitKind.UNITS, None)


def test_concurrency_is_told_to_come_back_soon(valkey: redis.Redis) -> None:
    refused = admit(valkey, 2, 0, limits_of(concurrency=1))[-1]
    assert isinstance(refused, LimitReached)
    assert refused.retry_after_ms == 1_000


def test_no_limit_admits_any_cost(valkey: redis.Redis) -> None:
    assert all(isinstance(reply, Reserved) for reply in admit(valkey, 50, 10**12, Limits()))


def test_changing_a_limit_keeps_the_level(valkey: redis.Redis) -> None:
    admit(valkey, 3, 2_000, limits_of(requests=3, units_mu=6_000))
    raised = CellRequest(
        client=valkey, request_id="raised", tenant_limits=limits_of(requests=4, units_mu=8_000)
    ).reserve(1_000)
    assert isinstance(raised, Reserved)
    assert 3.9 < raised.tenant.levels[0] <= 4
    lowered = CellRequest(client=valkey, request_id="lowered", tenant_limits=limits_of(requests=2)).reserve(0)
    assert isinstance(lowered, LimitReached)


def test_levels_drain_to_nothing_in_a_minute(valkey: redis.Redis) -> None:
    limits = limits_of(requests=5, units_mu=50_000)
    admit(valkey, 5, 10_000, limits)
    age_bucket(valkey, CellRequest(client=valkey, request_id="x").keys.tenant_bucket, 60)
    reply = CellRequest(client=valkey, request_id="later", tenant_limits=limits).reserve(50_000)
    assert isinstance(reply, Reserved)
    assert reply.tenant.levels[0] == 1


def test_a_clock_that_jumped_back_neither_drains_nor_sticks(valkey: redis.Redis) -> None:
    limits = limits_of(requests=2)
    request = CellRequest(client=valkey, request_id="r0", tenant_limits=limits)
    request.reserve()
    age_bucket(valkey, request.keys.tenant_bucket, -3600)
    assert isinstance(CellRequest(client=valkey, request_id="r1", tenant_limits=limits).reserve(), Reserved)
    assert isinstance(
        CellRequest(client=valkey, request_id="r2", tenant_limits=limits).reserve(), LimitReached
    )
    age_bucket(valkey, request.keys.tenant_bucket, 31)
    assert isinstance(CellRequest(client=valkey, request_id="r2", tenant_limits=limits).reserve(), Reserved)


def test_models_and_tenants_do_not_share_a_bucket(valkey: redis.Redis) -> None:
    limits = limits_of(requests=1)
    for n, (tenant, model) in enumerate([("a", "m"), ("b", "m"), ("a", "n")]):
        reply = CellRequest(
            client=valkey, request_id=f"r{n}", tenant=tenant, model=model, tenant_limits=limits
        ).reserve()
        assert isinstance(reply, Reserved)


def test_every_key_of_an_open_request_has_a_ttl_that_outlives_it(valkey: redis.Redis) -> None:
    limits = limits_of(requests=10)
    request = CellRequest(client=valkey, request_id="r", tenant_limits=limits, key_limits=limits)
    request.reserve()
    keys = [key for key in valkey.keys("*") if not key.endswith(":intact")]
    assert len([key for key in keys if ":like:" not in key]) == 5
    for key in keys:
        assert valkey.pttl(key) > 6 * 86_400_000
    fields = valkey.hgetall(request.reservation)
    assert (fields["tb"], fields["kb"]) == (request.keys.tenant_bucket, request.keys.key_bucket)
    assert valkey.zscore(request.keys.open_requests, "r") == float(fields["lease"])


def test_big_amounts_are_stored_without_loss(valkey: redis.Redis) -> None:
    cost_mu = 1_000_000_000_001
    request = CellRequest(client=valkey, request_id="r", tenant_limits=limits_of(units_mu=10 * cost_mu))
    reply = request.reserve(cost_mu)
    assert isinstance(reply, Reserved)
    assert reply.tenant.levels[0] == cost_mu
    assert valkey.hget(request.reservation, "charged") == str(cost_mu)
    assert f"{{c:{CELL}}}" in request.reservation
