"""Preemption: a flex stream is stopped, waits, and is resumed from its text; its caller sees one stream, its
tenant one price.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing.cell.execute import execute
from billing.cell.scripts import grant_call
from billing.wire import redis_keys
from billing.wire.ending import Ending, OtherReason
from billing.wire.usage_event import CapacityClass
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import Outcome, ask

TOKENS = 120
FLEX_STREAM = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "x"}],
    "stream": True,
    "max_tokens": TOKENS,
    "service_tier": "flex",
}


def plan(catalogue: Catalogue, most: int, preempt: int) -> None:
    """What an allocator writes when an owner has come back, and its round's end."""
    catalogue.redis.hset(redis_keys.room(MODEL), mapping={"m:i1": most, "x:i1": most, "g:i1": preempt})
    execute(catalogue.redis, grant_call(MODEL))


def text_of(answer: Outcome, route: str) -> str:
    said = [choice for event in answer.events for choice in event["choices"]]
    return "".join(
        (choice["delta"].get("content") if route == "chat" else choice["text"]) or "" for choice in said
    )


def delivered(engine: SimEngine) -> int:
    return sum(truth["output"] for truth in engine.truth().values())


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_flex_stream_is_preempted_and_resumed_as_one_stream_at_one_price(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    route: str,
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    asked: dict[str, Any] = {
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "service_tier": "flex",
        "stream_options": {"include_usage": True},
    }
    running = pool.submit(ask, gateway, key, route, True, **asked)
    for times in (1, 2):
        wait_until(lambda enough=20 * times: delivered(slow) > enough, "tokens")  # type: ignore[misc]
        plan(catalogue, 0, 1)
        wait_until(lambda: slow.counters()["running"] == 0, "place given up")
        wait_until(
            lambda: bool(catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "f"))),
            "waiting flex request",
        )
        plan(catalogue, 4, 0)
        wait_until(lambda: slow.counters()["running"] == 1, "stream that goes on")
    answer = running.result()
    assert (answer.status, answer.done, answer.headers["x-taas-class"]) == (200, True, "flex")
    assert len({event["id"] for event in answer.events}) == 1
    usage = answer.events[-1]["usage"]
    events = sorted(catalogue.await_events(3), key=lambda event: event.request_id)
    assert [event.request_id.removeprefix(answer.request_id) for event in events] == ["", "-2", "-3"]
    assert [(event.ending, event.class_) for event in events] == [(Ending.COMPLETE, CapacityClass.FLEX)] * 3
    assert sum(event.billed.output for event in events) == usage["completion_tokens"] == TOKENS
    assert events[0].billed.prompt == usage["prompt_tokens"]
    assert events[1].billed.prompt == events[2].billed.prompt == 0
    assert events[1].absorbed.reasons[OtherReason.CONTINUED].prompt > events[0].billed.prompt
    # What the next part was given to go on from is what the caller had.
    last = slow.requests()[-1]["body"]
    given = last["messages"][-1]["content"] if route == "chat" else last["prompt"]
    assert text_of(answer, route).startswith(
        given if route == "chat" else given.removeprefix(slow.requests()[0]["body"]["prompt"])
    )
    if route == "chat":
        assert (
            sum(
                event["choices"][0]["delta"].get("role") is not None
                for event in answer.events
                if event["choices"]
            )
            == 1
        )
    conserved()
    assert catalogue.redis.hget(redis_keys.flight(MODEL), "f:i1") == "0"


@pytest.mark.parametrize("route", ["responses", "messages"])
def test_what_cannot_be_resumed_is_stopped_unbilled(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    route: str,
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    amount = {"max_output_tokens": TOKENS} if route == "responses" else {"max_tokens": TOKENS}
    running = pool.submit(ask, gateway, key, route, True, service_tier="flex", **amount)
    wait_until(lambda: delivered(slow) > 20, "tokens")
    plan(catalogue, 0, 1)
    answer = running.result()
    assert answer.error_code() == "preempted"
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.billed.output) == (Ending.PREEMPTED, 0)
    assert event.absorbed.output == event.produced.output > 0
    conserved()


def test_resumable_ones_are_preempted_first_and_reserved_and_on_demand_never(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 8, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    on_demand = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS)
    fixed = pool.submit(ask, gateway, key, "messages", True, max_tokens=TOKENS, service_tier="flex")
    able = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
    wait_until(lambda: slow.counters()["running"] == 3 and delivered(slow) > 20, "tokens of all")
    plan(catalogue, 2, 1)
    wait_until(lambda: slow.counters()["running"] == 2, "place given up")
    plan(catalogue, 8, 0)
    answers = [found.result() for found in (on_demand, fixed, able)]
    assert [answer.done for answer in answers] == [True] * 3
    assert sum(event.request_id.startswith(answers[2].request_id) for event in catalogue.await_events(4)) == 2
    conserved()


def test_a_caller_that_leaves_in_the_pause_pays_for_what_it_had(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    with (
        gateway.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=FLEX_STREAM) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        for _, line in zip(range(10), lines, strict=False):
            assert json.loads(line[6:])["choices"]
        plan(catalogue, 0, 1)
        wait_until(
            lambda: bool(catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "f"))),
            "waiting flex request",
        )
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.billed.output) == (Ending.CLIENT_DISCONNECT, event.produced.output)
    conserved()


def test_without_room_in_time_the_stream_says_so_and_nobody_pays(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway(TAAS_WAIT_FLEX_S="0.3")
    key = catalogue.key(catalogue.tenant("ten_a"))
    running = pool.submit(ask, gateway, key, "chat", True, max_tokens=TOKENS, service_tier="flex")
    wait_until(lambda: delivered(slow) > 20, "tokens")
    plan(catalogue, 0, 1)
    assert running.result().error_code() == "preempted"
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.billed.output) == (Ending.PREEMPTED, 0)
    conserved()


def test_stop_strings_leave_no_trace_where_two_parts_meet(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
) -> None:
    """The engine holds text back for them: what it held back of the first part is neither lost nor paid
    for twice.
    """
    catalogue.instance(slow.url, slow.key)
    plan(catalogue, 4, 0)
    gateway = start_gateway()
    key = catalogue.key(catalogue.tenant("ten_a"))
    asked: dict[str, Any] = {
        "max_tokens": 80,
        "service_tier": "flex",
        "stream_options": {"include_usage": True},
    }
    asked["stop"] = ["never said by it in all of its life"]
    undisturbed = pool.submit(ask, gateway, key, "chat", True, **asked).result()
    before = delivered(slow)
    running = pool.submit(ask, gateway, key, "chat", True, **asked)
    wait_until(lambda: delivered(slow) > before + 40, "tokens")
    plan(catalogue, 0, 1)
    wait_until(
        lambda: bool(catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "f"))), "waiting flex request"
    )
    plan(catalogue, 4, 0)
    answer = running.result()
    assert answer.done
    assert text_of(answer, "chat") == text_of(undisturbed, "chat")
    assert answer.events[-1]["usage"]["completion_tokens"] == 80
    billed = [
        event.billed.output
        for event in catalogue.await_events(3)
        if event.request_id.startswith(answer.request_id)
    ]
    assert (len(billed), sum(billed)) == (2, 80)
    conserved()
