"""Faults of our own parts: Redis, the gateway's processes, the crowd."""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis

from billing.metrics import BillingMetrics
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from loadtest import plain_http
from tests.fixtures.crowd import crowd
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.redis_faults import frozen
from tests.fixtures.valkey import ValkeyProcess

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 4}
LONG = CHAT | {"max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize("where", ["tenant", "key"])
async def test_fault_39_two_gateways_and_500_callers_admit_exactly_the_limit(
    where: str,
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
) -> None:
    catalogue.instance(engine.url, engine.key)
    # One more would be admitted after 60 s / 40 = 1.5 s: the bucket is full for longer than that before the
    # crowd comes.
    limits = [{"model": "*", "requests_per_minute": 40, "units_per_minute": None, "concurrency": None}]
    tenant = catalogue.tenant("ten_a", limits=limits if where == "tenant" else [])
    key = catalogue.key(tenant, limits=limits if where == "key" else [])
    gateways = [start_gateway(), start_gateway()]
    seconds, micros = catalogue.redis.time()
    started_s = seconds + micros / 1e6
    statuses = await crowd([each.port for each in gateways], key, CHAT, 500)
    seconds, micros = catalogue.redis.time()
    elapsed_s = seconds + micros / 1e6 - started_s
    assert set(statuses) == {200, 429}
    assert 40 <= statuses.count(200) <= 40 + int(elapsed_s * 40 / 60) + 1
    assert len(catalogue.await_events(statuses.count(200))) == statuses.count(200)
    conserved()


async def test_fault_39_concurrency_is_never_exceeded_over_two_gateways(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engine = make_engine("--decode-ms", "400")
    catalogue.instance(engine.url, engine.key)
    limit = {"model": MODEL, "requests_per_minute": None, "units_per_minute": None, "concurrency": 7}
    key = catalogue.key(catalogue.tenant("ten_a", limits=[limit]))
    gateways = [start_gateway(), start_gateway()]
    statuses = await crowd([each.port for each in gateways], key, CHAT, 100)
    assert statuses.count(200) == 7
    assert len(catalogue.await_events(7)) == 7


def test_fault_34_without_redis_a_request_is_refused_and_service_returns(
    own_valkey: ValkeyProcess, engine: SimEngine, start_gateway: StartGateway
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway(own_valkey.url)
        with gateway.client(key) as caller:
            assert caller.post("/v1/chat/completions", json=CHAT).status_code == 200
            own_valkey.kill()
            refused = caller.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "dependency_unavailable"
            assert refused.headers["x-request-id"]
            own_valkey.start()
            wait_until(lambda: caller.post("/v1/chat/completions", json=CHAT).status_code == 200, "service")


def test_fault_34_a_settle_without_redis_goes_to_the_journal_and_arrives_once(
    own_valkey: ValkeyProcess, make_engine: EngineMaker, start_gateway: StartGateway
) -> None:
    engine = make_engine("--decode-ms", "20")
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway(own_valkey.url)
        with (
            gateway.client(key) as caller,
            caller.stream("POST", "/v1/chat/completions", json=LONG | {"max_tokens": 50}) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            own_valkey.kill()
            rest = list(lines)
        assert "data: [DONE]" in rest  # a running stream survives the outage
        own_valkey.start()
        (event,) = catalogue.await_events(1)
        assert event.ending is Ending.COMPLETE
        assert event.billed.output == 50 == engine.counters()["generation"]
        wait_until(lambda: client.zcard(redis_keys.open_requests(MODEL)) == 0, "end of the reservation")
        assert len(catalogue.events()) == 1


def test_fault_34_a_tenants_outage_lease_is_bounded_over_all_gateways(
    own_valkey: ValkeyProcess, engine: SimEngine, start_gateway: StartGateway
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        lease = {"policy": "local_lease", "requests": 6, "units": 100_000}
        key = catalogue.key(catalogue.tenant("ten_a", redis_down=lease))
        gateways = [start_gateway(own_valkey.url), start_gateway(own_valkey.url)]
        wait_until(lambda: client.hlen(redis_keys.GATEWAYS) == 2, "two heartbeats")
        for gateway in gateways:
            with gateway.client(key) as caller:
                assert caller.post("/v1/chat/completions", json=CHAT).status_code == 200
        beats = {name: client.hget(redis_keys.GATEWAYS, name) for name in client.hkeys(redis_keys.GATEWAYS)}
        wait_until(
            lambda: all(client.hget(redis_keys.GATEWAYS, name) != beat for name, beat in beats.items()),
            "beats",
        )
        own_valkey.kill()
        statuses = []
        for gateway in gateways:
            with gateway.client(key) as caller:
                statuses += [caller.post("/v1/chat/completions", json=CHAT).status_code for _ in range(8)]
        assert statuses.count(200) == 6
        assert set(statuses) == {200, 503}
        own_valkey.start()
        events = catalogue.await_events(8)
        assert len(events) == len({event.request_id for event in events}) == 8
        assert all(event.ending is Ending.COMPLETE for event in events)


def test_fault_36_a_refused_request_that_redis_admitted_later_leaves_nothing(
    own_valkey: ValkeyProcess, engine: SimEngine, start_gateway: StartGateway
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        limit = {"model": MODEL, "concurrency": 1}
        key = catalogue.key(catalogue.tenant("ten_a", limits=[limit]))
        gateway = start_gateway(own_valkey.url)
        with gateway.client(key) as caller:
            served = [caller.post("/v1/chat/completions", json=CHAT)]
            with frozen(own_valkey, client):
                refused = caller.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            # It would take the only place until its lease ends; here nobody reaps.
            wait_until(
                lambda: (
                    served.append(caller.post("/v1/chat/completions", json=CHAT))
                    or served[-1].status_code == 200
                ),
                "service",
                instead=lambda: str(served[-1].json()),
            )
        wait_until(lambda: client.zcard(redis_keys.open_requests(MODEL)) == 0, "end of the reservations")
        ids = {answer.headers["x-request-id"] for answer in served if answer.status_code == 200}
        assert {event.request_id for event in catalogue.await_events(2)} == ids


def begin_stream(gateway: GatewayProcess, key: str, stack: contextlib.ExitStack) -> httpx.Response:
    """A stream that has begun, closed with the stack."""
    client = stack.enter_context(gateway.client(key))
    answer = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=LONG))
    assert answer.status_code == 200
    return answer


def test_fault_37_kill_9_in_mid_stream_is_settled_once_from_the_last_checkpoint(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway, valkey_url: str
) -> None:
    engine = make_engine("--decode-ms", "20")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_LEASE_MS="1000", TAAS_CHECKPOINT_MS="100")
    with contextlib.ExitStack() as stack:
        begin_stream(gateway, key, stack)
        (request_id,) = catalogue.redis.zrange(redis_keys.open_requests(MODEL), 0, -1)
        reservation = redis_keys.reservation(MODEL, request_id)
        wait_until(lambda: int(catalogue.redis.hget(reservation, "o") or 0) > 5, "checkpoint")
        gateway.kill()
        stack.pop_all()
    with redis.Redis.from_url(valkey_url) as client:
        reaper = Reaper(client, BillingMetrics())

        def reaped() -> bool:
            reaper.reap_once()
            return catalogue.redis.xlen(redis_keys.usage_stream(MODEL)) == 1

        wait_until(reaped, "reaped event")
        reaper.reap_once()
    (event,) = catalogue.events()
    assert event.ending is Ending.GATEWAY_DIED
    assert event.billed.output == 0
    assert 5 < event.absorbed.output <= engine.counters()["generation"]
    assert catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0
    wait_until(lambda: engine.counters()["running"] == 0, "engine to notice")


def test_fault_41_sigterm_lets_streams_finish(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engine = make_engine("--decode-ms", "25")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_DRAIN_S="60")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(
            plain_http.Client(
                base_url=gateway.url,
                headers={"authorization": f"Bearer {key}"},
                timeout=60,
                limits=httpx.Limits(max_connections=None),
            )
        )
        request = client.build_request("POST", "/v1/chat/completions", json=LONG)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: client.send(request, stream=True), range(200)))
        for answer in answers:
            stack.callback(answer.close)
        assert catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 200
        assert gateway.process is not None
        gateway.process.terminate()
        for answer in answers:
            assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]
    assert gateway.process.wait(20) == 0
    events = catalogue.await_events(200)
    assert {event.ending for event in events} == {Ending.COMPLETE}
    assert sum(event.billed.output for event in events) == engine.counters()["generation"]


def test_fault_41_streams_beyond_the_drain_end_with_an_error_and_nothing_is_unaccounted(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engine = make_engine("--decode-ms", "50")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_DRAIN_S="0.5")
    with contextlib.ExitStack() as stack:
        answers = [begin_stream(gateway, key, stack) for _ in range(10)]
        assert gateway.process is not None
        gateway.process.terminate()
        for answer in answers:
            lines = [line for line in answer.iter_lines() if line]
            assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "gateway_stopped"
    assert gateway.process.wait(20) == 0
    events = catalogue.await_events(10)
    assert {event.ending for event in events} == {Ending.GATEWAY_STOPPED}
    assert sum(event.absorbed.output for event in events) == engine.counters()["generation"]
    assert sum(event.billed.output for event in events) == 0


def test_an_operator_stops_one_request_and_all_of_a_tenant(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engine = make_engine("--decode-ms", "50")
    catalogue.instance(engine.url, engine.key)
    key, other = catalogue.key(catalogue.tenant("ten_a")), catalogue.key(catalogue.tenant("ten_b"))
    gateway = start_gateway()
    with contextlib.ExitStack() as stack:
        stopped = begin_stream(gateway, key, stack)
        (request_id,) = catalogue.redis.zrange(redis_keys.open_requests(MODEL), 0, -1)
        assert stopped.headers["x-request-id"] == request_id
        suspended = begin_stream(gateway, other, stack)
        catalogue.changed("stop", request_id)
        catalogue.changed("stop", "tenant:ten_b")
        for answer in (stopped, suspended):
            assert '"error"' in [line for line in answer.iter_lines() if line][-1]
    by_tenant = {event.tenant: event for event in catalogue.await_events(2)}
    assert by_tenant["ten_a"].ending is Ending.OPERATOR_STOP
    assert by_tenant["ten_a"].billed.output == 0
    assert by_tenant["ten_b"].ending is Ending.TENANT_SUSPENDED
    assert by_tenant["ten_b"].billed.output == by_tenant["ten_b"].produced.output > 0
    produced = sum(event.produced.output for event in by_tenant.values())
    assert produced == engine.counters()["generation"]
