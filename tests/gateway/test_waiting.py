"""Room and contracts through the whole gateway: who is served at once, who waits, who is told to come back,
and that waiting leaves nothing behind.

The allocator's numbers are written by hand; engines hold streams open until the test lets them go.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from billing.cell.execute import execute
from billing.cell.scripts import grant_call
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.usage_event import CapacityClass
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.gateway.asking import Outcome, ask

DAY_MS = 86_400_000


def room(catalogue: Catalogue, most: int, flex: int | None = None) -> None:
    """What on-demand and flex may have on the one instance."""
    catalogue.redis.hset(
        redis_keys.room(MODEL), mapping={"m:i1": most, "x:i1": most if flex is None else flex}
    )


def contract(
    catalogue: Catalogue, tenant: str, units_per_s: int, overflow: str = "reject", spill: int = -1
) -> None:
    rate = units_per_s * 1000
    seconds, _ = catalogue.redis.time()
    fields = {
        "id": "con_1",
        "rate": rate,
        "burst": rate,
        "of": overflow,
        "spill": spill,
        "end": seconds * 1000 + DAY_MS,
    }
    catalogue.redis.hset(redis_keys.contract_bucket(MODEL, tenant), mapping=fields)


def waiting(catalogue: Catalogue) -> int:
    """Requests that wait in the cell."""
    lines = [key for kind in "ofr" for key in catalogue.redis.scan_iter(f"{{c:{MODEL}}}:wl:{kind}:*")]
    return sum(catalogue.redis.zcard(line) for line in lines)


def in_flight(catalogue: Catalogue) -> int:
    counts = catalogue.redis.hgetall(redis_keys.flight(MODEL))
    return sum(int(count) for name, count in counts.items() if name[1:2] == ":")


def instance_goes(catalogue: Catalogue, late: Future[Outcome]) -> None:
    """The one instance, while a request waits, and the end of that."""
    catalogue.redis.hdel(redis_keys.INSTANCES, "i1")
    (channel,) = catalogue.redis.pubsub_channels("taas:wake:*")

    def woken_and_ended() -> bool:
        # The gateway sees that the instance is gone a moment later.
        catalogue.redis.publish(channel, "*")
        return late.done()

    wait_until(woken_and_ended, "end of the wait")


def assert_nothing_left(catalogue: Catalogue) -> None:
    wait_until(lambda: catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0, "end of all reservations")
    assert waiting(catalogue) == in_flight(catalogue) == 0


def hold(
    pool: ThreadPoolExecutor, engine: SimEngine, gateway: GatewayProcess, key: str, count: int
) -> list[Future[Outcome]]:
    """Streams that run for about two seconds, once the engine has them all."""
    running = engine.counters()["running"]
    found = [pool.submit(ask, gateway, key, "chat", True, max_tokens=200) for _ in range(count)]
    wait_until(lambda: engine.counters()["running"] == running + count, "held streams")
    return found


def test_what_finds_no_room_waits_for_it_over_two_gateways(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key)
    room(catalogue, 2)
    one, other = start_gateway(), start_gateway()
    keys = [catalogue.key(catalogue.tenant(name)) for name in ("ten_a", "ten_b")]
    held = hold(pool, slow, one, keys[0], 2)
    late = [pool.submit(ask, other, key, "chat", True, max_tokens=5) for key in keys * 3]
    wait_until(lambda: waiting(catalogue) == 6, "waiting requests")
    assert slow.counters()["running"] == 2
    assert [answer.result().status for answer in [*held, *late]] == [200] * 8
    events = {event.request_id: event for event in catalogue.await_events(8)}
    for answer in late:
        event = events[answer.result().request_id]
        assert event.waited_ms > 0
        assert event.decision is not None
        assert event.decision["why"] == "waited"
    conserved()
    assert_nothing_left(catalogue)


def test_a_caller_that_leaves_while_it_waits_leaves_no_trace(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(slow.url, slow.key)
    room(catalogue, 1)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    (held,) = hold(pool, slow, gateway, key, 1)
    with gateway.client(key, timeout_s=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        )
    wait_until(lambda: waiting(catalogue) == 0, "empty queue")
    assert held.result().status == 200
    assert [event.ending for event in catalogue.await_events(1)] == [Ending.COMPLETE]
    assert_nothing_left(catalogue)


def test_at_the_end_of_its_time_it_is_told_when_to_come_back(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(slow.url, slow.key)
    room(catalogue, 1)
    gateway = start_gateway(TAAS_WAIT_ON_DEMAND_S="0.2", TAAS_WAIT_FLEX_S="0.1")
    key = catalogue.key(catalogue.tenant("ten_a"))
    (held,) = hold(pool, slow, gateway, key, 1)
    for tier in ("default", "flex"):
        refused = ask(gateway, key, "chat", service_tier=tier)
        assert (refused.status, refused.error_code()) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after-ms"]) >= 1_000
    assert held.result().status == 200
    assert_nothing_left(catalogue)


def test_within_its_contract_a_tenant_is_served_when_there_is_no_room_for_others(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key, priority=True)
    room(catalogue, 1)
    gateway = start_gateway()
    owner, other = (catalogue.key(catalogue.tenant(name)) for name in ("ten_owner", "ten_other"))
    contract(catalogue, "ten_owner", 1_000)
    held = [
        *hold(pool, slow, gateway, other, 1),
        pool.submit(ask, gateway, other, "chat", True, max_tokens=3),
    ]
    wait_until(lambda: waiting(catalogue) == 1, "waiting request")
    answer = ask(gateway, owner, "chat", max_tokens=3)
    assert (answer.status, answer.headers["x-taas-class"], answer.json["service_tier"]) == (
        200,
        "reserved",
        "priority",
    )
    assert waiting(catalogue) == 1
    assert [found.result().status for found in held] == [200, 200]
    event = next(event for event in catalogue.await_events(3) if event.request_id == answer.request_id)
    assert (event.class_, event.contract) == (CapacityClass.RESERVED, "con_1")
    assert event.decision is not None
    assert (event.decision["why"], event.decision["rate_mu_s"]) == ("within_contract", 1_000_000)
    assert {seen["body"]["priority"] for seen in slow.requests() if "priority" in seen["body"]} == {0, 10}
    conserved()


@pytest.mark.parametrize(
    ("overflow", "outcome"),
    [("reject", (429, None)), ("spill", (200, "on_demand")), ("queue", (200, "reserved"))],
)
def test_beyond_its_contract_its_overflow_decides(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    overflow: str,
    outcome: tuple[int, str | None],
) -> None:
    catalogue.instance(engine.url, engine.key)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_owner"))
    contract(catalogue, "ten_owner", 100, overflow)
    first = ask(gateway, key, "chat", max_tokens=60)
    assert first.headers["x-taas-class"] == "reserved"
    second = ask(gateway, key, "chat", max_tokens=3)
    assert (second.status, second.headers.get("x-taas-class")) == outcome
    if overflow == "reject":
        assert 0 < int(second.headers["retry-after-ms"]) < 5_000
    assert_nothing_left(catalogue)


def test_what_finds_no_instance_is_refused_of_its_contract(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    contract(catalogue, "ten_owner", 10_000)
    owner, guest = (catalogue.key(catalogue.tenant(name)) for name in ("ten_owner", "ten_guest"))
    gateway = start_gateway()
    for key, tier in (
        (owner, "flex"),
        (owner, "auto"),
        (guest, "auto"),
        (owner, "priority"),
        (owner, "default"),
    ):
        answer = ask(gateway, key, "chat", service_tier=tier)
        assert (answer.status, answer.error_code()) == (503, "no_instance")

    def refused() -> str | None:
        return catalogue.redis.hget(redis_keys.contract_bucket(MODEL, "ten_owner"), "refused")  # type: ignore[return-value]

    # Of the two that would have come under it; who has none leaves no trace.
    wait_until(lambda: refused() == "2", "count")
    assert catalogue.redis.exists(redis_keys.contract_bucket(MODEL, "ten_guest")) == 0


def test_an_instance_that_goes_while_a_contract_is_waited_for_is_a_refusal_of_it(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(engine.url, engine.key)
    contract(catalogue, "ten_owner", 1, "queue")
    bucket = redis_keys.contract_bucket(MODEL, "ten_owner")
    seconds, _ = catalogue.redis.time()
    catalogue.redis.hset(bucket, mapping={"u": 5_000_000, "t": seconds * 1_000_000})
    key = catalogue.key(catalogue.tenant("ten_owner"))
    gateway = start_gateway(TAAS_WAIT_ON_DEMAND_S="60")
    late = pool.submit(ask, gateway, key, "chat")
    wait_until(lambda: waiting(catalogue) == 1, "a request in the queue")
    instance_goes(catalogue, late)
    assert late.result().status == 503
    wait_until(lambda: catalogue.redis.hget(bucket, "refused") == "1", "count")
    assert_nothing_left(catalogue)


def test_an_operator_stops_a_request_that_waits(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(engine.url, engine.key)
    room(catalogue, 0)
    gateway = start_gateway(TAAS_WAIT_ON_DEMAND_S="60")
    late = pool.submit(ask, gateway, catalogue.key(catalogue.tenant("ten_a")), "chat")
    wait_until(lambda: waiting(catalogue) == 1, "a request in the queue")
    (request_id,) = catalogue.redis.zrange(redis_keys.open_requests(MODEL), 0, -1)
    catalogue.changed("stop", request_id)
    answer = late.result()
    assert (answer.status, answer.error_code()) == (503, "operator_stop")
    assert_nothing_left(catalogue)


def test_priority_without_a_contract_is_an_error_of_the_request(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    for route in ("chat", "messages"):
        refused = ask(gateway, key, route, service_tier="priority")
        assert (refused.status, refused.error_code()) == (400, "no_contract")
    assert_nothing_left(catalogue)


def test_a_gateway_that_stops_serves_or_refuses_those_who_wait(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(slow.url, slow.key)
    room(catalogue, 1)
    gateway = start_gateway(TAAS_DRAIN_S="0.5", TAAS_SETTLE_S="3")
    key = catalogue.key(catalogue.tenant("ten_a"))
    (held,) = hold(pool, slow, gateway, key, 1)
    late = pool.submit(ask, gateway, key, "chat")
    wait_until(lambda: waiting(catalogue) == 1, "waiting request")
    assert gateway.terminate() == 0
    assert held.result().error_code() == "gateway_stopped"
    assert (late.result().status, late.result().error_code()) == (503, "gateway_stopped")
    assert_nothing_left(catalogue)


def test_prompts_of_a_crowd_are_started_one_after_the_other_and_an_owner_does_not_wait_for_them(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key)
    room(catalogue, 32)
    # It reads a prompt of the crowd in about a fifth of a second.
    catalogue.redis.hset(redis_keys.room(MODEL), "w:i1", 100_000)
    gateway = start_gateway()
    owner, other = (catalogue.key(catalogue.tenant(name)) for name in ("ten_owner", "ten_other"))
    contract(catalogue, "ten_owner", 1_000)
    crowd = [pool.submit(ask, gateway, other, "chat", True, max_tokens=200) for _ in range(6)]
    wait_until(
        lambda: slow.counters()["running"] >= 1 and waiting(catalogue) >= 3, "a line behind one that is read"
    )
    answer = ask(gateway, owner, "chat", max_tokens=3)
    assert answer.headers["x-taas-class"] == "reserved"
    assert waiting(catalogue) >= 1
    assert [found.result().status for found in crowd] == [200] * 6
    conserved()
    assert_nothing_left(catalogue)


def test_fault_43_a_caller_that_keeps_leaving_before_its_first_token_is_refused(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(engine.url, engine.key)
    gateway = start_gateway(TAAS_CANCELS_PER_MINUTE="3")
    key = catalogue.key(catalogue.tenant("ten_a"))
    engine.faults("hang", count=3)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}

    def leave() -> None:
        with gateway.client(key, timeout_s=0.5) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=body)

    for left in [pool.submit(leave) for _ in range(3)]:
        left.result()
    catalogue.await_events(3)
    refused = ask(gateway, key, "chat")
    assert (refused.status, refused.error_code()) == (429, "rate_limit_exceeded")
    assert "cancelled before their first token" in refused.text
    assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
    assert ask(gateway, catalogue.key(catalogue.tenant("ten_b")), "chat").status == 200
    assert {
        event.billed.output for event in catalogue.events() if event.ending is Ending.CLIENT_DISCONNECT
    } == {0}
    conserved()


def test_fault_44_a_storm_of_retries_keeps_the_engine_at_work_and_is_spread_out(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key)
    room(catalogue, 4)
    gateway = start_gateway(TAAS_WAIT_ON_DEMAND_S="0.3")
    keys = [catalogue.key(catalogue.tenant(f"ten_{number}")) for number in range(20)]
    ends = time.monotonic() + 3.0

    def insist(key: str) -> list[int]:
        told = []
        while time.monotonic() < ends:
            answer = ask(gateway, key, "chat", True, max_tokens=30)
            if answer.status == 429:
                told.append(int(answer.headers["retry-after-ms"]))
        return told

    storm = [pool.submit(insist, key) for key in keys * 2]
    wait_until(lambda: slow.counters()["running"] == 4, "full engine")
    seen = []
    while time.monotonic() < ends - 0.5:
        seen.append(slow.counters()["running"])
    told = [after_ms for caller in storm for after_ms in caller.result()]
    assert max(seen) <= 4
    assert sum(seen) / len(seen) > 3
    assert min(told) >= 1_000
    assert len(set(told)) > len(told) / 4
    conserved()
    assert_nothing_left(catalogue)


def test_who_waits_while_the_engine_starts_anew_is_sent_to_the_new_one(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    """Each start of an engine has a key of its own."""
    catalogue.instance(engine.url, "the key of before")
    room(catalogue, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    late = pool.submit(ask, gateway, key, "chat", True)
    wait_until(lambda: waiting(catalogue) == 1, "waiting request")
    catalogue.instance(engine.url, engine.key, epoch="e2")

    def heard_of() -> bool:
        with gateway.client(key) as client:
            client.post("/tokenize", json={"model": MODEL, "prompt": "sea"})  # needs no room
        return any(event.epoch == "e2" for event in catalogue.events())

    wait_until(heard_of, "gateway that has heard of the new engine")
    room(catalogue, 1)
    execute(catalogue.redis, grant_call(MODEL))
    answer = late.result()
    assert (answer.status, answer.done) == (200, True)
    wait_until(lambda: any(event.route == "chat" for event in catalogue.events()), "usage event")
    assert [event.epoch for event in catalogue.events() if event.route == "chat"] == ["e2"]
