"""Fault 34 where capacity is at stake: Redis goes away while reserved streams run, requests wait in the
queue, flex is to be preempted. Each caller is told in its dialect, nothing is lost, and afterwards all counts
are right by themselves. And faults 16, 40 and 44 there.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from billing.cell.execute import execute
from billing.cell.replies import Levels, LimitReached, LimitScope
from billing.cell.scripts import grant_call
from billing.metrics import BillingMetrics
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.limits import LimitKind, Limits
from billing.wire.usage_event import CapacityClass
from gateway.routes import ROUTES
from gateway.waiting.refusals import quota_exceeded
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.redis_faults import Fault, full, killed, loading, readonly
from tests.fixtures.redis_faults import slow as slowed
from tests.fixtures.valkey import ValkeyProcess, say_intact
from tests.gateway.asking import Outcome, ask
from tests.gateway.protocol.bodies import SMALLEST
from tests.gateway.test_waiting import contract, in_flight, room, waiting

# At 10 ms a token: what runs when Redis goes runs for a while after it.
TOKENS = 300
# About ten requests a second; a crowd of a hundred asks for far more.
UNITS_PER_S, TRIES = 500, 2
UNAVAILABLE = (503, "dependency_unavailable")
# Who waits: route, streamed or not, tier.
WAITERS = (
    ("chat", True, "default"),
    ("messages", False, "default"),
    ("messages", True, "flex"),
    ("completions", False, "flex"),
)


@pytest.fixture
def valkey(own_valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    """The test's own, under everything that it starts."""
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        say_intact(client)
        yield client


@pytest.fixture
def valkey_url(valkey: redis.Redis, own_valkey: ValkeyProcess) -> str:
    return own_valkey.url


@dataclass
class Busy:
    """A cell without room: a reserved stream, and a line of a guest's requests, over two gateways."""

    catalogue: Catalogue
    gateways: list[GatewayProcess]
    owner: str
    reserved: Future[Outcome]
    line: list[Future[Outcome]]

    def ask_reserved(self, gateway: int = 0) -> Outcome:
        return ask(self.gateways[gateway], self.owner, "chat", max_tokens=3, service_tier="priority")

    def await_service(self) -> None:
        for number in range(len(self.gateways)):
            wait_until(lambda number=number: self.ask_reserved(number).status == 200, "service")  # type: ignore[misc]

    def make_room(self) -> None:
        """As an allocator does."""
        room(self.catalogue, 8)
        execute(self.catalogue.redis, grant_call(MODEL))


def busy(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    wait_s: float,
) -> Busy:
    catalogue.instance(engine.url, engine.key, priority=True)
    room(catalogue, 0)
    contract(catalogue, "ten_owner", 100_000)
    owner, guest = (catalogue.key(catalogue.tenant(name)) for name in ("ten_owner", "ten_guest"))
    waits = {"TAAS_WAIT_ON_DEMAND_S": str(wait_s), "TAAS_WAIT_FLEX_S": str(wait_s)}
    gateways = [start_gateway(**waits), start_gateway(**waits)]
    reserved = pool.submit(ask, gateways[0], owner, "chat", True, max_tokens=TOKENS, ignore_eos=True)
    wait_until(lambda: engine.counters()["running"] == 1, "a reserved stream")
    line = [
        pool.submit(ask, gateways[number % 2], guest, route, stream, max_tokens=3, service_tier=tier)
        for number, (route, stream, tier) in enumerate(WAITERS)
    ]
    # On a slow machine one may have waited long enough before the last has come.
    wait_until(lambda: waiting(catalogue) + sum(each.done() for each in line) == len(line), "a queue")
    return Busy(catalogue, gateways, owner, reserved, line)


def assert_right(catalogue: Catalogue, conserved: Callable[[], None], served: list[Outcome]) -> None:
    """Nothing is left, and what was charged is what was recorded."""
    ids = {answer.request_id for answer in served}
    wait_until(lambda: ids <= {event.request_id for event in catalogue.events()}, "what the journals hold")
    with redis.Redis(port=catalogue.redis.get_connection_kwargs()["port"]) as client:
        reaper = Reaper(client, BillingMetrics())

        def over() -> bool:
            reaper.reap_once()
            return catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0

        wait_until(over, "end of all reservations")
    conserved()
    assert waiting(catalogue) == in_flight(catalogue) == 0
    assert list(catalogue.redis.scan_iter(redis_keys.waiting_tenants(MODEL, "*"))) == []
    buckets = list(catalogue.redis.scan_iter(redis_keys.tenant_bucket(MODEL, "*", "*")))
    assert {catalogue.redis.hget(bucket, "c") for bucket in buckets} <= {"0", None}
    events = catalogue.events()
    assert not any(event.orphan for event in events)
    assert int(catalogue.redis.hget(redis_keys.flight(MODEL), "used") or 0) == sum(
        event.units_mu for event in events
    )
    reserved = sum(event.units_mu for event in events if event.class_ is CapacityClass.RESERVED)
    assert int(catalogue.redis.hget(redis_keys.contract_bucket(MODEL, "ten_owner"), "used") or 0) == reserved


@pytest.mark.parametrize("fault", [killed, readonly, full])
def test_fault_34_who_waits_through_an_outage_is_told_and_leaves_no_trace(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    own_valkey: ValkeyProcess,
    fault: Fault,
) -> None:
    scene = busy(slow, catalogue, start_gateway, pool, wait_s=2)
    with fault(own_valkey, catalogue.redis):
        for number in (0, 1):
            refused = scene.ask_reserved(number)
            assert (refused.status, refused.error_code()) == UNAVAILABLE
        for answer in scene.line:
            told = answer.result(30)
            # A full Redis can still take somebody out of the queue.
            assert (told.status, told.error_code()) in {UNAVAILABLE, (429, "rate_limit_exceeded")}
        # What runs is not touched by it, and settles into the journal.
        served = scene.reserved.result(30)
        assert served.done
    scene.await_service()
    scene.make_room()
    # Without anybody who reaps: nobody holds a place, or stands before others, who has been told to come
    # again.
    wait_until(lambda: waiting(catalogue) == in_flight(catalogue) == 0, "empty queue")
    assert_right(catalogue, conserved, [served])
    assert {event.ending for event in catalogue.events()} == {Ending.COMPLETE}


@pytest.mark.parametrize("fault", [loading, slowed])
def test_fault_34_who_waits_longer_than_an_outage_is_served(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    own_valkey: ValkeyProcess,
    fault: Fault,
) -> None:
    scene = busy(slow, catalogue, start_gateway, pool, wait_s=60)
    with fault(own_valkey, catalogue.redis):
        refused = scene.ask_reserved()
        assert (refused.status, refused.error_code()) == UNAVAILABLE
    scene.await_service()
    scene.make_room()
    answers = [answer.result(30) for answer in [scene.reserved, *scene.line]]
    assert [answer.status for answer in answers] == [200] * 5
    assert_right(catalogue, conserved, answers)


@pytest.mark.parametrize("fault", [killed, readonly])
def test_fault_34_a_flex_stream_that_is_preempted_in_an_outage_says_how_it_ended(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
    conserved: Callable[[], None],
    own_valkey: ValkeyProcess,
    fault: Fault,
) -> None:
    scene = busy(slow, catalogue, start_gateway, pool, wait_s=60)
    scene.make_room()
    waited = [answer.result(30) for answer in scene.line]
    guest = catalogue.key("ten_guest")
    lent = pool.submit(
        ask, scene.gateways[0], guest, "chat", True, max_tokens=TOKENS, ignore_eos=True, service_tier="flex"
    )
    wait_until(lambda: len(flex_requests(catalogue)) == 1, "a flex stream")
    (request_id,) = flex_requests(catalogue)
    if fault is killed:
        # Whether its place was given up before is open.
        tell(catalogue, "!" + request_id)
    with fault(own_valkey, catalogue.redis):
        if fault is not killed:
            tell(catalogue, "!" + request_id)
            assert lent.result(30).error_code() == "preempted"
        refused = scene.ask_reserved()
        assert (refused.status, refused.error_code()) == UNAVAILABLE
    scene.await_service()
    answer, reserved = lent.result(30), scene.reserved.result(30)
    assert (reserved.done, [each.status for each in waited]) == (True, [200] * 4)
    assert_right(catalogue, conserved, [*waited, reserved, answer])
    parts = [event for event in catalogue.events() if event.request_id.startswith(request_id)]
    if answer.done:
        assert {event.ending for event in parts} == {Ending.COMPLETE}
    else:
        assert answer.error_code() == "preempted"
        assert {(event.ending, event.billed.output) for event in parts} == {(Ending.PREEMPTED, 0)}


def flex_requests(catalogue: Catalogue) -> list[str]:
    """Those that an engine has."""
    ids = catalogue.redis.zrange(redis_keys.open_requests(MODEL), 0, -1)
    states = {
        each: catalogue.redis.hmget(redis_keys.reservation(MODEL, each), "cls", "state") for each in ids
    }
    return [each for each, state in states.items() if state == ["f", "open"]]


def tell(catalogue: Catalogue, word: str) -> None:
    """All gateways, as a script does."""
    for channel in catalogue.redis.pubsub_channels(redis_keys.wake_channel("*")):
        catalogue.redis.publish(channel, word)


def test_fault_44_a_storm_against_a_contract_that_rejects_is_spread_and_takes_all_of_it(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(engine.url, engine.key)
    contract(catalogue, "ten_owner", UNITS_PER_S)
    key = catalogue.key(catalogue.tenant("ten_owner"))
    gateways = [start_gateway(), start_gateway()]

    def as_the_sdk(number: int) -> tuple[list[int], int]:
        """What it was told, and its last status: three tries, each when it was told to. Two retries, as it
        does.
        """
        told: list[int] = []
        while True:
            # So much that the contract cannot have it all, however slowly the callers come.
            answer = ask(gateways[number % 2], key, "chat", max_tokens=64, ignore_eos=True)
            if answer.status != 429 or len(told) == TRIES:
                return told, answer.status
            assert answer.headers.get("x-should-retry") != "false"
            told.append(int(answer.headers["retry-after-ms"]))
            time.sleep(told[-1] / 1000)  # as the SDK does

    began_us = redis_us(catalogue)
    with ThreadPoolExecutor(100) as callers:
        outcomes = list(callers.map(as_the_sdk, range(100)))
    elapsed_s = (redis_us(catalogue) - began_us) / 1e6
    told = [after_ms for several, _ in outcomes for after_ms in several]
    assert {status for _, status in outcomes} <= {200, 429}
    assert told
    assert min(told) > 0
    assert len(set(told)) > len(told) / 4
    served = sum(event.units_mu for event in catalogue.await_events([s for _, s in outcomes].count(200)))
    # A second's worth at once, and then the rate: no more, and as long as there is anybody, no less than most
    # of it.
    largest = max(event.units_mu for event in catalogue.events())
    assert served <= UNITS_PER_S * 1000 * (1 + elapsed_s) + len(gateways) * 100 * largest
    assert served >= UNITS_PER_S * 1000
    conserved()
    # Alone, whoever comes back when it was told to is served.
    while (answer := ask(gateways[0], key, "chat", max_tokens=250, ignore_eos=True)).status == 200:
        continue
    time.sleep(int(answer.headers["retry-after-ms"]) / 1000)  # what it was told is what is tried
    assert ask(gateways[1], key, "chat", max_tokens=4).status == 200


@pytest.mark.parametrize("limit", [LimitKind.CONTRACT, LimitKind.ROOM])
def test_fault_44_a_crowd_that_is_refused_at_one_moment_is_not_called_back_at_one(limit: LimitKind) -> None:
    reply = LimitReached(
        now_ms=0, tenant=Levels(0), key=Levels(0), scope=LimitScope.TENANT, limit=limit, retry_after_ms=40
    )
    told = [quota_exceeded(reply, Limits()).retry_after_ms or 0 for _ in range(100)]
    assert min(told) >= 40
    assert len(set(told)) > 20


def redis_us(catalogue: Catalogue) -> int:
    seconds, micros = catalogue.redis.time()
    return int(seconds) * 1_000_000 + int(micros)


def test_fault_16_a_tier_of_any_type_is_refused_in_form_on_each_route(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    catalogue.model(routes=["chat", "completions", "responses", "messages", "embeddings", "tokenize"])
    gateway = start_gateway()
    tiers: list[Any] = [
        0,
        -1,
        1.5,
        1e300,
        True,
        False,
        "",
        "Flex",
        "priority\x00",
        "\ud800",
        "x" * 10_000,
        [],
        ["flex"],
        {},
        {"a": 1},
        10**400,
    ]
    with gateway.client(catalogue.key(catalogue.tenant("ten_a"))) as client:
        for name, route in ROUTES.items():
            if not route.metered:
                continue  # it has no meaning there, and is dropped
            for tier in tiers:
                body = json.dumps(SMALLEST[name] | {"model": MODEL, "service_tier": tier})
                answer = client.post(
                    route.facts.path, content=body, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 400, (name, tier, answer.text)
                assert answer.headers["x-request-id"].startswith("req_")
                assert set(answer.json()) in ({"error"}, {"type", "error", "request_id"})
    assert engine.requests() == []
    assert in_flight(catalogue) == 0


@pytest.mark.parametrize("hours", [-1, 1])
def test_fault_40_a_gateway_with_a_wrong_clock_writes_true_times_and_knows_which_keys_have_expired(
    slow: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    hours: int,
) -> None:
    # The clock of the process, and of no other: off by what stands in a file.
    offset = tmp_path / "offset"
    offset.write_text(str(hours * 3600))
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + float(open({str(offset)!r}).read())\n"
    )
    catalogue.instance(slow.url, slow.key)
    began_us = redis_us(catalogue)
    gateway = start_gateway(PYTHONPATH=str(tmp_path))
    wait_until(lambda: catalogue.redis.hlen(redis_keys.GATEWAYS) == 1, "a heartbeat")
    now_ms = redis_us(catalogue) // 1000
    key, expired = (
        catalogue.key(catalogue.tenant("ten_a"), expires_at_ms=now_ms + minutes * 60_000)
        for minutes in (30, -30)
    )

    def statuses() -> list[int]:
        found = []
        for each in (key, expired):
            with gateway.client(each) as client:
                found.append(client.get("/v1/models").status_code)
        return found

    assert statuses() == [200, 401]
    running = pool.submit(ask, gateway, key, "chat", True, max_tokens=200, ignore_eos=True)
    wait_until(lambda: slow.counters()["generation"] > 0 and slow.counters()["running"] == 1, "a stream")
    offset.write_text(str(-hours * 3600))
    assert statuses() == [200, 401]
    assert running.result(30).done
    assert ask(gateway, key, "chat").status == 200
    for event in catalogue.await_events(2):
        assert event.first_token_ms is not None
        times = [
            began_us // 1000,
            event.started_ms,
            event.first_token_ms,
            event.ended_ms,
            redis_us(catalogue) // 1000 + 1,
        ]
        assert times == sorted(times)
