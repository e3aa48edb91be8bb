"""Preemption while something else goes wrong: the caller always learns how the stream ended, and nothing
keeps a slot.
"""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from billing.wire import redis_keys
from billing.wire.ending import Ending
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.fixtures.valkey import free_port
from tests.gateway.asking import ask
from tests.gateway.test_preempt import FLEX_STREAM, TOKENS, delivered, plan


@pytest.mark.parametrize(("fault", "value"), [("status", 500), ("status", 400), ("garbage", "html")])
def test_a_part_that_fails_before_it_begins_ends_the_stream_with_an_error(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    fault: str,
    value: str | int,
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    running = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
    wait_until(lambda: delivered(slow) > 20, "tokens")
    plan(catalogue, 0, 1)
    wait_until(
        lambda: bool(catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "f"))), "waiting flex request"
    )
    slow.faults(fault, value, count=None)
    plan(catalogue, 4, 0)
    answer = running.result()
    assert (answer.status, answer.done) == (200, False)
    assert answer.error_code() in {"engine_failed", "engine_refused", "upstream_protocol_error"}
    events = catalogue.await_events(2)
    assert {event.http_status for event in events} == {200}
    assert sum(event.billed.output for event in events) == 0
    conserved()


def test_where_no_engine_stops_by_id_it_is_told_so_and_the_engine_is_not_blamed(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(slow.url, slow.key, abort=False)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    running = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
    wait_until(lambda: delivered(slow) > 20, "tokens")
    plan(catalogue, 0, 1)
    assert running.result().error_code() == "preempted"
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.billed.output) == (Ending.PREEMPTED, 0)


def test_one_that_is_preempted_before_its_engine_has_it_stops_all_the_same(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port), backlog=0) as deaf:
        # Its line of connections is full: the next one is not taken until the gateway gives up.
        full = [socket.create_connection(deaf.getsockname()) for _ in range(1)]
        catalogue.instance(f"http://127.0.0.1:{port}", "k", name="i1")
        catalogue.instance(slow.url, slow.key, name="i2", load={"running": 50, "waiting": 0, "kv_usage": 0.5})
        plan(catalogue, 4, 0)
        gateway = start_gateway(TAAS_CONNECT_TIMEOUT_S="1.0")
        key = catalogue.key(catalogue.tenant("ten_a"))
        running = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
        wait_until(lambda: catalogue.redis.hget(redis_keys.flight(MODEL), "f:i1") == "1", "admitted request")
        plan(catalogue, 0, 1)
        answer = running.result()
        for connection in full:
            connection.close()
    assert answer.done
    assert {event.request_id.removeprefix(answer.request_id) for event in catalogue.await_events(2)} == {
        "",
        "-2",
    }
    conserved()


def test_a_request_whose_engine_counts_wrong_is_not_resumed(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    slow.faults("usage", "backwards")
    running = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
    wait_until(lambda: delivered(slow) > 20, "tokens")
    plan(catalogue, 4, 1)
    assert running.result().error_code() == "preempted"
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.anomaly, event.billed.output) == (Ending.PREEMPTED, "usage_backwards", 0)


def test_one_that_is_stopped_in_the_pause_is_told_why(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    running = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
    wait_until(lambda: delivered(slow) > 20, "tokens")
    plan(catalogue, 0, 1)
    wait_until(
        lambda: bool(catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "f"))), "waiting flex request"
    )
    catalogue.changed("stop", "tenant:ten_a")
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.TENANT_SUSPENDED
    assert running.result().error_code() == "tenant_suspended"
    conserved()


def test_who_leaves_a_later_part_had_something_and_is_no_canceller(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway(TAAS_CANCELS_PER_MINUTE="1")
    key = catalogue.key(catalogue.tenant("ten_a"))
    with (
        gateway.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=FLEX_STREAM) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        for _ in range(10):
            next(lines)
        plan(catalogue, 0, 1)
        wait_until(
            lambda: bool(catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "f"))),
            "waiting flex request",
        )
        slow.faults("hang")
        plan(catalogue, 4, 0)
        part = redis_keys.reservation(MODEL, answer.headers["x-request-id"] + "-2")
        wait_until(lambda: catalogue.redis.hget(part, "state") == "open", "a later part")
    first, later = sorted(catalogue.await_events(2), key=lambda event: event.request_id)
    assert (first.ending, later.ending, later.produced.output) == (*[Ending.CLIENT_DISCONNECT] * 2, 0)
    assert ask(gateway, key, "chat").status == 200


@pytest.mark.parametrize("somebody_hears", [False, True], ids=["nobody listens", "the message is lost"])
def test_one_that_did_not_hear_its_preemption_is_asked_again(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    somebody_hears: bool,
) -> None:
    """The gateway's subscription is cut in that moment, and it comes back; in each round of the allocator
    one is still in the way.
    """
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    fields = {"max_tokens": 1_500, "ignore_eos": True, "presence_penalty": 0.5, "service_tier": "flex"}
    running = pool.submit(ask, gateway, key, "chat", True, **fields)
    wait_until(lambda: delivered(slow) > 20, "tokens")
    (channel,) = catalogue.redis.pubsub_channels(redis_keys.wake_channel("*"))
    listeners = [client["id"] for client in catalogue.redis.client_list(_type="pubsub")]
    with catalogue.redis.pubsub() as hears:
        if somebody_hears:
            hears.subscribe(channel)
            wait_until(
                lambda: catalogue.redis.pubsub_numsub(channel) == [(channel, 2)], "somebody else who hears"
            )
        for listener in listeners:
            catalogue.redis.client_kill_filter(_id=listener)
        plan(catalogue, 0, 1)
    wait_until(lambda: catalogue.redis.pubsub_numsub(channel) == [(channel, 1)], "gateway that listens again")
    rounds = 0
    while not running.done():
        plan(catalogue, 0, 1)
        rounds += 1
        wait_until(lambda: running.done() or rounds < 3, "end of the stream")  # noqa: B023
    assert running.result().error_code() == "preempted"
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.billed.output) == (Ending.PREEMPTED, 0)
    conserved()


def test_one_that_has_ended_when_it_is_asked_is_not_asked_again(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    assert ask(gateway, key, "chat", True, max_tokens=5, service_tier="flex").done
    catalogue.await_events(1)
    assert catalogue.redis.zcard(redis_keys.preemptible(MODEL, "i1")) == 0
    plan(catalogue, 4, 1)
    assert ask(gateway, key, "chat", True, max_tokens=5, service_tier="flex").done
    conserved()
