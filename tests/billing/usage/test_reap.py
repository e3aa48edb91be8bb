"""The reaper: what nobody renews ends at its last checkpoint, once; what is alive is left alone."""

import threading

import pytest
import redis

from billing.cell.execute import execute
from billing.cell.scripts import CellKeys, Claim, checkpoint_call, reserve_call
from billing.metrics import BillingMetrics
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.limits import Limits
from billing.wire.tokens import Tokens
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.billing.events import WEIGHTS, event, head


def reserve(
    client: redis.Redis,
    request_id: str,
    *,
    lease_ms: int,
    cell: str = "m1",
    tokens: tuple[int, int, int] | None = None,
) -> None:
    """Reserve, and checkpoint once where tokens are given."""
    client.sadd(redis_keys.CELLS, cell)
    keys = CellKeys.of(cell, request_id=request_id, tenant="ten_a", key_id="key_a", model="m1")
    crash_event = event(
        request_id, (0, 0, 0), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, cell=cell
    ).crash_event_json()
    execute(
        client,
        reserve_call(
            keys,
            lease_ms=lease_ms,
            cost_mu=1000,
            tenant=Limits(),
            key=Limits(),
            claim=Claim(tenant="ten_a", candidates=[("i1", "e1")]),
            head=head(request_id, cell=cell).admission_json(),
            crash_event=crash_event,
        ),
    )
    if tokens is not None:
        checkpoint(client, request_id, lease_ms=lease_ms, cell=cell, tokens=tokens)


def checkpoint(
    client: redis.Redis,
    request_id: str,
    *,
    lease_ms: int,
    cell: str = "m1",
    tokens: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Renew its lease."""
    usage = Tokens(*tokens)
    keys = CellKeys.of(cell, request_id=request_id, tenant="ten_a", key_id="key_a", model="m1")
    dead = event(request_id, tokens, Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, cell=cell)
    call = checkpoint_call(
        keys, lease_ms=lease_ms, cost_mu=WEIGHTS.cost_mu(usage), produced=usage,
        delivered_output=usage.output, crash_event=dead.crash_event_json(),
    )  # fmt: skip
    execute(client, call)


def waits(client: redis.Redis, request_id: str, gateway: str = "") -> None:
    """Ask for a place, where there is none."""
    keys = CellKeys.of("m1", request_id=request_id, tenant="ten_a", key_id="key_a", model="m1")
    crash_event = event(
        request_id, (0, 0, 0), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, cell="m1"
    ).crash_event_json()
    claim = Claim(tenant="ten_a", candidates=[("i1", "e1")], wait_max=5, gateway=gateway)
    execute(
        client,
        reserve_call(
            keys, lease_ms=60_000, cost_mu=1000, tenant=Limits(), key=Limits(), claim=claim,
            head=head(request_id, cell="m1").admission_json(), crash_event=crash_event,
        ),
    )  # fmt: skip


def lapse(client: redis.Redis, request_id: str, cell: str = "m1") -> None:
    """Age a reservation in Redis, as if its lease had passed."""
    client.hset(redis_keys.reservation(cell, request_id), "lease", 1_700_000_009_000)
    client.zadd(redis_keys.open_requests(cell), {request_id: 1_700_000_009_000})


def jump(client: redis.Redis, seconds: int, cell: str = "m1") -> None:
    """As if Redis's clock had jumped: all leases lie elsewhere, seen from now."""
    for request_id, until_ms in client.zrange(redis_keys.open_requests(cell), 0, -1, withscores=True):
        moved_ms = int(until_ms) - seconds * 1000
        client.hset(redis_keys.reservation(cell, request_id.decode()), "lease", moved_ms)
        client.zadd(redis_keys.open_requests(cell), {request_id: moved_ms})


class Watch:
    """A clock that a test moves: a second with each pass of a reaper."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def reaper(self, client: redis.Redis) -> Reaper:
        return Reaper(client, BillingMetrics(), patience_s=5, clock=self)

    def passes(self, *reapers: Reaper, seconds: int = 1) -> int:
        """So many seconds with a pass of each; how many requests were ended."""
        reaped = 0
        for _ in range(seconds):
            self.now_s += 1
            reaped += sum(reaper.reap_once() for reaper in reapers)
        return reaped


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
    assert sorted(each.request_id for each in events(raw_redis)) == sorted(
        f"r{number}" for number in range(50)
    )


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
    assert Reaper(raw_redis, BillingMetrics(), patience_s=10**9).reap_once() == 0
    assert Reaper(raw_redis, BillingMetrics()).reap_once() == 1


@pytest.mark.parametrize("jumped_s", [20, 3_600, -3_600])
@pytest.mark.parametrize("reapers", [1, 2])
@pytest.mark.parametrize("fresh", [False, True])
def test_fault_40_a_jump_of_redis_clock_ends_what_is_dead_and_nothing_else(
    raw_redis: redis.Redis, jumped_s: int, reapers: int, fresh: bool
) -> None:
    """Whether the reapers have watched before the jump, or begin after it."""
    watch = Watch()
    for number in range(16):
        reserve(raw_redis, f"live{number}", lease_ms=10_000)
    reserve(raw_redis, "dead", lease_ms=10_000, tokens=(10, 0, 7))
    taking_turns = [watch.reaper(raw_redis) for _ in range(reapers)]
    assert watch.passes(*taking_turns, seconds=3) == 0
    jump(raw_redis, jumped_s)
    if fresh:
        taking_turns = [watch.reaper(raw_redis) for _ in range(reapers)]
    # What is idle renews its lease last: 3.5 s later.
    assert watch.passes(*taking_turns, seconds=3) == 0
    for number in range(16):
        checkpoint(raw_redis, f"live{number}", lease_ms=10_000)
    assert watch.passes(*taking_turns, seconds=20) == 1
    (reaped,) = events(raw_redis)
    assert (reaped.request_id, reaped.absorbed.output) == ("dead", 7)
    now_s, _ = raw_redis.time()
    assert reaped.ended_ms <= (now_s + 1) * 1000
    assert raw_redis.zcard(redis_keys.open_requests("m1")) == 16


def test_time_in_which_redis_may_have_been_away_does_not_count(raw_redis: redis.Redis) -> None:
    watch = Watch()
    reserve(raw_redis, "a", lease_ms=60_000)
    lapse(raw_redis, "a")
    reaper = watch.reaper(raw_redis)
    assert watch.passes(reaper) == 0
    watch.now_s += 600
    assert watch.passes(reaper) == 0
    assert watch.passes(reaper, seconds=5) == 1


def test_what_waits_is_asked_for_before_it_is_dropped(raw_redis: redis.Redis) -> None:
    """It renews its lease only every 20 s by itself."""
    watch = Watch()
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.hset(redis_keys.room("m1"), mapping={"m:i1": 0, "x:i1": 0})
    waits(raw_redis, "a", gateway="gw-1")
    jump(raw_redis, 60)
    with raw_redis.pubsub() as gateway:
        gateway.subscribe(redis_keys.wake_channel("gw-1"))
        gateway.get_message(timeout=5)
        reaper = watch.reaper(raw_redis)
        assert watch.passes(reaper) == 0
        woken = gateway.get_message(timeout=5)
        assert woken is not None
        assert woken["data"] == b"a"
    waits(raw_redis, "a", gateway="gw-1")
    assert watch.passes(reaper, seconds=10) == 0
    assert raw_redis.zcard(redis_keys.waiting_tenants("m1", "o")) == 1
    jump(raw_redis, 60)
    assert watch.passes(reaper, seconds=10) == 0
    assert raw_redis.zcard(redis_keys.waiting_tenants("m1", "o")) == 0


def test_a_request_that_waited_for_a_gateway_that_died_is_dropped_without_an_event(
    raw_redis: redis.Redis,
) -> None:
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.hset(redis_keys.room("m1"), mapping={"m:i1": 0, "x:i1": 0})
    waits(raw_redis, "a")
    assert raw_redis.zcard(redis_keys.waiting_tenants("m1", "o")) == 1
    lapse(raw_redis, "a")
    metrics = BillingMetrics()
    assert Reaper(raw_redis, metrics).reap_once() == 0
    assert events(raw_redis) == []
    assert raw_redis.zcard(redis_keys.waiting_tenants("m1", "o")) == 0
    assert raw_redis.zcard(redis_keys.open_requests("m1")) == 0
