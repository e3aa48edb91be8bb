"""Endings whose answer does not say what was produced: the engine is asked by id, and what it says is
billed or absorbed.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from billing.metrics import BillingMetrics
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.tokens import Tokens
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.valkey import ValkeyProcess

BODY = {
    "model": MODEL, "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 400,
    "ignore_eos": True,
}  # fmt: skip
# Less than the five seconds in which a stopped engine's answer is awaited, with room for a busy machine.
LEASE = {"policy": "local_lease", "requests": 10, "units": 1_000_000}


class Caller:
    """A request in the background, over a socket of its own that it may close at any moment."""

    def __init__(self, gateway: GatewayProcess, key: str, **body: Any) -> None:
        content = json.dumps(BODY | body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self._socket = socket.create_connection(("127.0.0.1", gateway.port))
        self._socket.sendall(head.encode() + content)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(65536):
                pass

    def leave(self) -> None:
        """Close the connection."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def join(self) -> None:
        """Until the gateway has said all."""
        self._thread.join()
        self._socket.close()


@pytest.fixture
def counting(make_engine: EngineMaker, catalogue: Catalogue) -> SimEngine:
    """An engine that tells what each request has produced, at 10 ms a token."""
    engine = make_engine("--decode-ms", "10")
    catalogue.instance(engine.url, engine.key, counts=True)
    return engine


def open_ids(catalogue: Catalogue) -> list[str]:
    return list(catalogue.redis.zrange(redis_keys.open_requests(MODEL), 0, -1))


def the_event(catalogue: Catalogue) -> UsageEvent:
    (event,) = catalogue.await_events(1)
    return event


def truth_of(engine: SimEngine, request_id: str) -> tuple[int, int]:
    truth = engine.truth()[request_id]
    return truth["prompt"], truth["output"]


def assert_exact(engine: SimEngine, event: UsageEvent) -> None:
    """What the event says was produced is what the engine counted for that request, and something was."""
    assert (event.produced.prompt, event.produced.output) == truth_of(engine, event.request_id)
    assert event.produced.output > 0
    assert event.usage_source is UsageSource.ENGINE


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_an_engine_that_stands_still_pays_what_it_had_produced(
    stream: bool, counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway()
    caller = Caller(gateway, catalogue.key(catalogue.tenant("ten_a")), stream=stream)
    wait_until(lambda: counting.counters()["generation"] > 20, "tokens")
    with counting.standing_still():
        caller.leave()
        wait_until(lambda: "did not stop a request by id" in gateway.log(), "the end of patience")
        assert open_ids(catalogue), "it is open for as long as the engine may still tell"
    event = the_event(catalogue)
    assert (event.ending, event.http_status) == (Ending.CLIENT_DISCONNECT, 200 if stream else 499)
    assert_exact(counting, event)
    assert event.billed == event.produced
    assert not open_ids(catalogue)


def test_an_engine_that_refuses_what_it_has_produced_is_absorbed_and_counts_against_limits(
    counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    counting.faults("late_refusal")
    gateway = start_gateway()
    with gateway.client(catalogue.key(catalogue.tenant("ten_a"))) as client:
        answer = client.post(
            "/v1/messages", json={"model": MODEL, "messages": BODY["messages"], "max_tokens": 6}
        )
    assert answer.status_code == 400, answer.text
    event = the_event(catalogue)
    assert event.ending is Ending.REFUSED_BY_ENGINE
    assert_exact(counting, event)
    assert event.billed == Tokens(0, 0, 0)
    assert event.absorbed.reasons[Ending.REFUSED_BY_ENGINE].output == 6
    assert event.units_mu == event.weights.cost_mu(event.produced) > 0


def test_an_engine_that_refuses_at_once_has_produced_nothing(
    counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    counting.faults("status", 400)
    gateway = start_gateway()
    with gateway.client(catalogue.key(catalogue.tenant("ten_a"))) as client:
        assert client.post("/v1/chat/completions", json=BODY).status_code == 400
    event = the_event(catalogue)
    assert (event.ending, event.produced, event.units_mu) == (Ending.REFUSED_BY_ENGINE, Tokens(0, 0, 0), 0)


@pytest.mark.parametrize(
    ("fault", "value"), [("die_after_tokens", "7:close"), ("end_without_done", "7"), ("usage", "missing")]
)
def test_an_answer_that_breaks_off_or_says_nothing_is_asked_for_by_id(
    fault: str, value: str, counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    counting.faults(fault, value)
    gateway = start_gateway()
    caller = Caller(gateway, catalogue.key(catalogue.tenant("ten_a")), max_tokens=9)
    caller.join()
    assert_exact(counting, the_event(catalogue))


def test_an_engine_that_is_gone_leaves_what_was_heard_last_as_evidence(
    counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway()
    caller = Caller(gateway, catalogue.key(catalogue.tenant("ten_a")))
    wait_until(lambda: counting.counters()["generation"] > 5, "tokens")
    counting.kill()
    caller.join()
    assert open_ids(catalogue)
    catalogue.instance(counting.url, counting.key, counts=True, epoch="e2")
    event = the_event(catalogue)
    assert (event.ending, event.usage_source) == (Ending.ENGINE_DIED, UsageSource.UNREAD)
    assert event.epoch == "e1"


def test_an_engine_that_started_again_cannot_say_that_nothing_was_produced(
    counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    """It has never heard of the request; what came before it has produced some of it, and its
    counters may know.
    """
    gateway = start_gateway()
    caller = Caller(gateway, catalogue.key(catalogue.tenant("ten_a")))
    wait_until(lambda: counting.counters()["generation"] > 5, "tokens")
    counting.kill()
    counting.start()
    caller.join()
    event = the_event(catalogue)
    assert (event.ending, event.usage_source) == (Ending.ENGINE_DIED, UsageSource.UNREAD)
    assert event.epoch == "e1"


def test_a_gateway_killed_while_it_waits_for_the_last_word_is_recorded_as_it_ended(
    counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, valkey_url: str
) -> None:
    gateway = start_gateway(TAAS_LEASE_MS="1000", TAAS_CHECKPOINT_MS="50")
    caller = Caller(gateway, catalogue.key(catalogue.tenant("ten_a")), stream=True)
    wait_until(lambda: counting.counters()["generation"] > 20, "tokens")
    with counting.standing_still():
        caller.leave()
        wait_until(lambda: "did not stop a request by id" in gateway.log(), "the end of patience")
        (request_id,) = open_ids(catalogue)
        reservation = redis_keys.reservation(MODEL, request_id)
        wait_until(
            lambda: '"client_disconnect"' in (catalogue.redis.hget(reservation, "will") or ""),
            "its ending on record",
        )
        gateway.kill()
    _reap_until(valkey_url, lambda: bool(catalogue.events()))
    event = the_event(catalogue)
    assert (event.ending, event.usage_source) == (Ending.CLIENT_DISCONNECT, UsageSource.CHECKPOINT)
    assert event.billed.output > 0


def test_a_gateway_that_is_told_to_end_does_not_wait_for_an_engine_that_stands_still(
    counting: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(TAAS_DRAIN_S="0")
    caller = Caller(gateway, catalogue.key(catalogue.tenant("ten_a")))
    wait_until(lambda: counting.counters()["generation"] > 5, "tokens")
    with counting.standing_still():
        caller.leave()
        wait_until(lambda: "did not stop a request by id" in gateway.log(), "the end of patience")
        gateway.terminate()
    event = the_event(catalogue)
    assert (event.ending, event.usage_source) == (Ending.CLIENT_DISCONNECT, UsageSource.UNREAD)


# Local leases


def test_a_request_admitted_by_a_local_lease_is_reserved_when_redis_is_back(
    counting: SimEngine, own_valkey: ValkeyProcess, start_gateway: StartGateway
) -> None:
    catalogue, gateway, key = _by_lease(own_valkey, counting, start_gateway, concurrency=1)
    own_valkey.kill()
    caller = Caller(gateway, key, max_tokens=2000, stream=True)
    wait_until(lambda: counting.counters()["generation"] > 0, "a request admitted without Redis")
    own_valkey.start()
    wait_until(lambda: len(open_ids(catalogue)) == 1, "its reservation")
    with gateway.client(key) as client:
        refused = client.post("/v1/chat/completions", json=BODY | {"max_tokens": 1})
    assert refused.status_code == 429, "it counts for concurrency"
    caller.leave()
    event = the_event(catalogue)
    assert event.decision is not None
    assert event.decision["why"] == "local_lease"
    assert_exact(counting, event)


def test_a_gateway_killed_while_redis_is_away_leaves_a_trace_of_what_it_admitted(
    counting: SimEngine, own_valkey: ValkeyProcess, start_gateway: StartGateway
) -> None:
    catalogue, gateway, key = _by_lease(own_valkey, counting, start_gateway)
    own_valkey.kill()
    caller = Caller(gateway, key, stream=True)
    wait_until(lambda: counting.counters()["generation"] > 0, "a request admitted without Redis")
    (request_id,) = counting.truth()
    gateway.kill()
    caller.join()
    own_valkey.start()
    gateway.start()
    event = the_event(catalogue)
    assert (event.request_id, event.ending) == (request_id, Ending.GATEWAY_DIED)
    assert event.usage_source is UsageSource.UNREAD


def _by_lease(
    valkey: ValkeyProcess, engine: SimEngine, start_gateway: StartGateway, **limits: int
) -> tuple[Catalogue, GatewayProcess, str]:
    client = redis.Redis(port=valkey.port, decode_responses=True)
    catalogue = Catalogue(client)
    catalogue.model()
    catalogue.instance(engine.url, engine.key, counts=True)
    nothing = {"requests_per_minute": None, "units_per_minute": None, "concurrency": None}
    entries = [{"model": "*"} | nothing | limits] if limits else []
    key = catalogue.key(catalogue.tenant("ten_a", redis_down=LEASE, limits=entries))
    gateway = start_gateway(valkey.url, TAAS_LEASE_MS="1000", TAAS_CHECKPOINT_MS="50")
    with gateway.client(key) as asking:
        assert asking.get("/v1/models").status_code == 200
    return catalogue, gateway, key


def _reap_until(url: str, done: Callable[[], bool]) -> None:
    with redis.Redis.from_url(url) as client:
        reaper = Reaper(client, BillingMetrics())

        def reaped() -> bool:
            reaper.reap_once()
            return done()

        wait_until(reaped, "the end of a lapsed lease")
