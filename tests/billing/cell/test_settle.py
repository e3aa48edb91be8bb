"""settle.lua: checkpoints, the one settle, the reaper, and what each leaves behind."""

import pytest
import redis

from billing.cell.replies import (
    AlreadySettled,
    LimitReached,
    Missing,
    Renewed,
    Reserved,
    Settled,
    Stale,
    StillLeased,
)
from billing.wire.tokens import Tokens
from billing.wire.usage_event import UsageEvent
from tests.billing.cell.requests import CellRequest, Drained, age_bucket, limits_of, usage_events

LIMITS = limits_of(requests=10, units_mu=100_000, concurrency=10)


@pytest.fixture
def request_(valkey: redis.Redis) -> CellRequest:
    return CellRequest(client=valkey, request_id="r", tenant_limits=LIMITS, key_limits=LIMITS)


def test_settle_gives_back_what_was_reserved_too_much(request_: CellRequest) -> None:
    left = Drained(100_000 / 60_000)
    request_.reserve(50_000)
    assert isinstance(request_.settle(20_000), Settled)
    assert request_.tenant_level("u") == left(20_000)
    assert request_.key_level("u") == left(20_000)
    assert request_.tenant_level("c") == request_.key_level("c") == 0


def test_settle_charges_what_was_reserved_too_little_as_debt(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    left, left_ms = Drained(100_000 / 60_000), Drained(1)
    request_.reserve(50_000)
    request_.settle(150_000)
    assert request_.tenant_level("u") == left(150_000)
    refused = CellRequest(client=valkey, request_id="next", tenant_limits=LIMITS).reserve(10_000)
    assert isinstance(refused, LimitReached)
    assert refused.retry_after_ms == left_ms(36_000)


def test_the_event_is_written_in_the_step_that_settles(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(50_000)
    reply = request_.settle(20_000, Tokens(10, 4, 7))
    assert isinstance(reply, Settled)
    [event] = usage_events(valkey)
    assert event["produced"] == {"prompt": 10, "cached": 4, "output": 7}
    assert not reply.orphan
    assert valkey.zcard(request_.keys.open_requests) == 0
    assert valkey.hgetall(request_.reservation) == {
        "state": "settled",
        "event": reply.entry_id,
        "by": "settle",
    }
    # A copy of a template of up to a minute ago.
    assert 840_000 < valkey.pttl(request_.reservation) <= 960_000


def test_settle_twice_charges_and_records_once(valkey: redis.Redis, request_: CellRequest) -> None:
    left = Drained(100_000 / 60_000)
    CellRequest(client=valkey, request_id="other", tenant_limits=LIMITS, key_limits=LIMITS).reserve(0)
    request_.reserve(50_000)
    request_.settle(20_000)
    assert isinstance(request_.settle(90_000), AlreadySettled)
    assert len(usage_events(valkey)) == 1
    assert request_.tenant_level("u") == left(20_000)
    assert request_.tenant_level("c") == 1


def test_a_checkpoint_charges_only_what_exceeds_the_reserve(request_: CellRequest) -> None:
    left = Drained(100_000 / 60_000)
    request_.reserve(50_000)
    assert isinstance(request_.checkpoint(Tokens(5, 0, 1), 30_000), Renewed)
    assert request_.tenant_level("u") == left(50_000)
    request_.checkpoint(Tokens(5, 0, 9), 130_000)
    assert request_.tenant_level("u") == left(130_000)
    assert request_.key_level("u") == left(130_000)
    request_.settle(60_000)
    assert request_.tenant_level("u") == left(60_000)


def test_a_checkpoint_keeps_usage_and_renews_the_lease(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(50_000)
    request_.let_lease_pass()
    reply = request_.checkpoint(Tokens(5, 2, 3), 30_000)
    assert isinstance(reply, Renewed)
    fields = valkey.hgetall(request_.reservation)
    assert (fields["p"], fields["c"], fields["o"], fields["d"]) == ("5", "2", "3", "3")
    assert int(fields["lease"]) > reply.now_ms
    assert valkey.zscore(request_.keys.open_requests, "r") == float(fields["lease"])
    assert isinstance(request_.reap(), StillLeased)


def test_an_older_checkpoint_changes_nothing(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(0)
    request_.checkpoint(Tokens(5, 0, 9), 41_000)
    before = valkey.hgetall(request_.reservation)
    assert isinstance(request_.checkpoint(Tokens(5, 0, 8), 37_000), Stale)
    assert valkey.hgetall(request_.reservation) == before


def test_a_checkpoint_after_the_settle_changes_nothing(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(10_000)
    request_.settle(10_000)
    assert isinstance(request_.checkpoint(Tokens(5, 0, 9), 90_000), AlreadySettled)
    assert request_.tenant_level("u") <= 10_000
    assert valkey.zcard(request_.keys.open_requests) == 0


def test_a_checkpoint_without_reservation_creates_none(valkey: redis.Redis, request_: CellRequest) -> None:
    assert isinstance(request_.checkpoint(Tokens(5, 0, 9), 90_000), Missing)
    assert [key for key in valkey.keys("*") if not key.endswith(":intact")] == []


def test_a_live_lease_is_not_reaped(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(0)
    assert isinstance(request_.reap(), StillLeased)
    assert usage_events(valkey) == []


def test_the_reaper_settles_a_dead_gateways_request_at_its_last_checkpoint(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    request_.reserve(50_000)
    request_.checkpoint(Tokens(5, 2, 3), 15_200)
    request_.let_lease_pass()
    assert isinstance(request_.reap(), Settled)
    [fields] = usage_events(valkey)
    event = UsageEvent.from_json(valkey.xrange(request_.usage_stream)[0][1]["e"])
    assert fields["ending"] == "gateway_died"
    assert event.produced == Tokens(5, 2, 3)
    assert (event.billed, event.absorbed.prompt, event.absorbed.output) == (Tokens(0, 0, 0), 5, 3)
    assert (event.request_id, event.instance, event.units_mu) == ("r", "i-1", 0)
    assert event.ended_ms == 1_780_000_000_000
    # Ended by our fault: like every such ending it is charged nothing.
    assert request_.tenant_level("u") == request_.key_level("u") == 0
    assert request_.tenant_level("c") == 0
    assert isinstance(request_.reap(), AlreadySettled)
    assert isinstance(request_.settle(1), AlreadySettled)
    assert len(usage_events(valkey)) == 1


def test_a_request_reaped_before_any_checkpoint_gives_its_reserve_back(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    request_.reserve(50_000)
    request_.let_lease_pass()
    request_.reap()
    event = UsageEvent.from_json(valkey.xrange(request_.usage_stream)[0][1]["e"])
    assert event.produced == Tokens(0, 0, 0)
    assert request_.tenant_level("u") == 0


def test_the_reaper_names_the_instance_that_took_over(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(0)
    moved = request_.head.to_json().replace(b'"i-1"', b'"i-2"')
    request_.checkpoint(Tokens(5, 2, 3), 15_200, head=moved)
    request_.checkpoint(Tokens(5, 2, 4), 19_200)
    request_.let_lease_pass()
    request_.reap()
    assert usage_events(valkey)[0]["instance"] == "i-2"


def test_reaping_an_id_without_reservation_clears_it_from_the_open_ones(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    valkey.zadd(request_.keys.open_requests, {"r": 1})
    assert isinstance(request_.reap(), Missing)
    assert valkey.zcard(request_.keys.open_requests) == 0
    assert usage_events(valkey) == []


def test_what_was_produced_is_recorded_even_when_its_reservation_is_lost(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    request_.reserve(50_000)
    valkey.flushall()
    reply = request_.settle(20_000, Tokens(10, 0, 7))
    assert isinstance(reply, Settled)
    assert reply.orphan
    [event] = usage_events(valkey)
    assert event["orphan"] is True
    assert UsageEvent.from_json(valkey.xrange(request_.usage_stream)[0][1]["e"]).orphan
    assert isinstance(request_.settle(20_000), AlreadySettled)
    assert len(usage_events(valkey)) == 1


def test_an_orphan_is_charged_but_lowers_no_count_that_it_did_not_raise(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    left = Drained(100_000 / 60_000)
    CellRequest(client=valkey, request_id="other", tenant_limits=LIMITS, key_limits=LIMITS).reserve(0)
    request_.settle(20_000)
    assert request_.tenant_level("u") == left(20_000)
    assert request_.tenant_level("c") == 1


def test_debt_outlives_the_bucket_of_an_idle_tenant(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve(50_000)
    request_.settle(1_000_000)
    ttl_ms = valkey.pttl(request_.keys.tenant_bucket)
    assert ttl_ms == pytest.approx(600_000, abs=2_000)
    small = CellRequest(client=valkey, request_id="small", tenant="other", tenant_limits=LIMITS)
    small.reserve(0)
    small.settle(0)
    assert valkey.pttl(small.keys.tenant_bucket) == pytest.approx(60_000, abs=1_000)


def test_a_bucket_with_another_request_open_keeps_its_long_ttl(
    valkey: redis.Redis, request_: CellRequest
) -> None:
    CellRequest(client=valkey, request_id="other", tenant_limits=LIMITS).reserve(0)
    request_.reserve(0)
    request_.settle(0)
    assert valkey.pttl(request_.keys.tenant_bucket) > 6 * 86_400_000


def test_time_drains_before_a_late_charge_is_added(valkey: redis.Redis, request_: CellRequest) -> None:
    left = Drained(100_000 / 60_000)
    request_.reserve(10_000)
    age_bucket(valkey, request_.keys.tenant_bucket, 60)
    request_.settle(30_000)
    assert request_.tenant_level("u") == left(20_000)


def test_concurrency_freed_by_a_settle_admits_the_next(valkey: redis.Redis) -> None:
    limits = limits_of(concurrency=1)
    first = CellRequest(client=valkey, request_id="a", tenant_limits=limits)
    second = CellRequest(client=valkey, request_id="b", tenant_limits=limits)
    first.reserve()
    assert isinstance(second.reserve(), LimitReached)
    first.settle()
    assert isinstance(second.reserve(), Reserved)


def test_the_usage_stream_never_expires(valkey: redis.Redis, request_: CellRequest) -> None:
    request_.reserve()
    request_.settle()
    assert valkey.ttl(request_.usage_stream) == -1
