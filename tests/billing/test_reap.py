"""The reaper: what nobody renews ends at its last checkpoint, once; what is alive is left alone."""

import threading

import pytest
import redis

from billing import redis_keys
from billing.cell.execute import execute
from billing.cell.scripts import CellKeys, Claim, Limits, checkpoint_call, reserve_call
from billing.metrics import BillingMetrics
from billing.reap import Reaper
from billing.tokens import Tokens
from billing.usage_event import Ending, UsageEvent, UsageSource
from tests.billing.events import WEIGHTS, event, head


def reserve(
    client: redis.Redis, request_id: str, *, lease_ms: int, cell: str = "m1", tokens: tuple[int, int, int] | None = None
) -> None:
    """Reserve, and checkpoint once where tokens are given."""
    client.sadd(redis_keys.CELLS, cell)
    keys = CellKeys.of(cell, request_id=request_id, tenant="ten_a", key_id="key_a", model="m1")
    will = event(request_id, (0, 0, 0), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, cell=cell).will_json()
    execute(
        client,
        reserve_call(
            keys, lease_ms=lease_ms, cost_mu=1000, tenant=Limits(), key=Limits(),
            claim=Claim("ten_a", [("i1", "e1")]), head=head(request_id, cell=cell).admission_json(), will=will,
        ),
    )  # fmt: skip
    if tokens is not None:
        usage = Tokens(*tokens)
        dead = event(request_id, tokens, Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, cell=cell)
        call = checkpoint_call(
            keys, lease_ms=lease_ms, cost_mu=WEIGHTS.cost_mu(usage), produced=usage, delivered_output=usage.output,
            will=dead.will_json(),
        )  # fmt: skip
        execute(client, call)


def lapse(client: redis.Redis, request_id: str, cell: str = "m1") -> None:
    """Age a reservation in Redis, as if its lease had passed."""
    client.hset(redis_keys.reservation(cell, request_id), "lease", 1_700_000_009_000)
    client.zadd(redis_keys.open_requests(cell), {request_id: 1_700_000_009_000})


def events(client: redis.Redis, cell: str = "m1") -> list[UsageEvent]:
    return [UsageEvent.from_json(fields[b"e"]) for _, fields in client.xrange(redis_keys.usage_stream(cell))]


def test_a_lapsed_request_ends_at_its_last_checkpoint(raw_redis: redis.Redis) -> None:
    reserve(raw_redis, "a", lease_ms=60_000, tokens=(10, 0, 7))
    lapse(raw_redis, "a")
    metrics = BillingMetrics()
    assert Reaper(raw_redis, metrics).reap_once() == 1
    (reaped,) = events(raw_redis)
    assert (reaped.ending, reaped.absorbed.prompt, reaped.absorbed.output) == (Ending.GATEWAY_DIED, 10, 7)
    assert raw_redis.zcard(redis_keys.open_requests("m1")) == 0
    assert metrics.registry.get_sample_value("taas_reaped_requests_total", {"cell": "m1"}) == 1


def test_cells_are_reaped_together_and_a_living_lease_is_left_alone(raw_redis: redis.Redis) -> None:
    reserve(raw_redis, "a", lease_ms=60_000, cell="m1")
    reserve(raw_redis, "b", lease_ms=60_000, cell="m2", tokens=(1, 0, 1))
    reserve(raw_redis, "c", lease_ms=60_000, cell="m2")
    lapse(raw_redis, "a", "m1")
    lapse(raw_redis, "b", "m2")
    assert Reaper(raw_redis, BillingMetrics()).reap_once() == 2
    assert [len(events(raw_redis, cell)) for cell in ("m1", "m2")] == [1, 1]
    assert raw_redis.zrange(redis_keys.open_requests("m2"), 0, -1) == [b"c"]


def test_a_renewal_in_the_last_moment_wins(raw_redis: redis.Redis) -> None:
    reserve(raw_redis, "a", lease_ms=60_000)
    # The index is behind: the reservation itself has been renewed.
    raw_redis.zadd(redis_keys.open_requests("m1"), {"a": 1})
    assert Reaper(raw_redis, BillingMetrics()).reap_once() == 0
    assert events(raw_redis) == []


def test_an_id_without_a_reservation_is_dropped(raw_redis: redis.Redis) -> None:
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.zadd(redis_keys.open_requests("m1"), {"gone": 1})
    assert Reaper(raw_redis, BillingMetrics()).reap_once() == 0
    assert raw_redis.zcard(redis_keys.open_requests("m1")) == 0


def test_reapers_at_the_same_time_end_each_request_once(raw_redis: redis.Redis) -> None:
    for number in range(50):
        reserve(raw_redis, f"r{number}", lease_ms=60_000, tokens=(1, 0, 1))
        lapse(raw_redis, f"r{number}")
    threads = [threading.Thread(target=Reaper(raw_redis, BillingMetrics()).reap_once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(each.request_id for each in events(raw_redis)) == sorted(f"r{number}" for number in range(50))


def test_more_than_one_pass_takes_are_ended_at_once(raw_redis: redis.Redis) -> None:
    for number in range(501):
        reserve(raw_redis, f"r{number}", lease_ms=60_000)
        lapse(raw_redis, f"r{number}")
    reaper = Reaper(raw_redis, BillingMetrics())
    assert [reaper.step() for _ in range(3)] == [True, True, False]
    assert raw_redis.zcard(redis_keys.open_requests("m1")) == 0


def test_one_request_that_cannot_be_reaped_does_not_keep_the_others(raw_redis: redis.Redis) -> None:
    reserve(raw_redis, "a", lease_ms=60_000)
    lapse(raw_redis, "a")
    raw_redis.zadd(redis_keys.open_requests("m1"), {"broken": 1})
    raw_redis.hset(
        redis_keys.reservation("m1", "broken"), mapping={"state": "open", "lease": "1", "tb": "x", "kb": "y"}
    )
    with pytest.raises(redis.ResponseError):
        Reaper(raw_redis, BillingMetrics()).reap_once()
    assert [each.request_id for each in events(raw_redis)] == ["a"]


def test_after_a_restart_of_redis_the_gateways_come_first(raw_redis: redis.Redis) -> None:
    reserve(raw_redis, "a", lease_ms=60_000)
    lapse(raw_redis, "a")
    assert Reaper(raw_redis, BillingMetrics(), calm_s=10**6).reap_once() == 0
    assert Reaper(raw_redis, BillingMetrics(), grace_ms=10**12).reap_once() == 0
    assert Reaper(raw_redis, BillingMetrics()).reap_once() == 1


def test_a_request_that_waited_for_a_gateway_that_died_is_dropped_without_an_event(raw_redis: redis.Redis) -> None:
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.hset(redis_keys.room("m1"), mapping={"m:i1": 0, "x:i1": 0})
    keys = CellKeys.of("m1", request_id="a", tenant="ten_a", key_id="key_a", model="m1")
    will = event("a", (0, 0, 0), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, cell="m1").will_json()
    execute(
        raw_redis,
        reserve_call(
            keys, lease_ms=60_000, cost_mu=1000, tenant=Limits(), key=Limits(), claim=Claim("ten_a", [("i1", "e1")], wait_max=5),
            head=head("a", cell="m1").admission_json(), will=will,
        ),
    )  # fmt: skip
    assert raw_redis.zcard(redis_keys.waiting_tenants("m1", "o")) == 1
    lapse(raw_redis, "a")
    metrics = BillingMetrics()
    assert Reaper(raw_redis, metrics).reap_once() == 0
    assert events(raw_redis) == []
    assert raw_redis.zcard(redis_keys.waiting_tenants("m1", "o")) == 0
    assert raw_redis.zcard(redis_keys.open_requests("m1")) == 0
