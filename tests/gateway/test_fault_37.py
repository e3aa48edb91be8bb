"""kill -9 of the gateway at each point of a request's life: one ending, no double, nothing left open
(I1-I3).
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
import redis

from billing.metrics import BillingMetrics
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until

BODY = {"model": MODEL, "stream": True, "ignore_eos": True, "max_tokens": 40}


def ask(
    gateway: GatewayProcess, key: str, prompt: str, headers: dict[str, str] | None = None
) -> threading.Thread:
    """A caller in the background that does not mind being cut off."""

    def run() -> None:
        with contextlib.suppress(httpx.TransportError), gateway.client(key) as client:
            body = BODY | {"messages": [{"role": "user", "content": prompt}]}
            with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                for _ in answer.iter_bytes():
                    pass

    caller = threading.Thread(target=run)
    caller.start()
    return caller


@contextlib.contextmanager
def writes_held(client: redis.Redis) -> Iterator[None]:
    """Redis takes commands in and runs no write until the end: what was sent and not answered is in doubt."""
    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        yield
    finally:
        client.execute_command("CLIENT", "UNPAUSE")


def is_open(catalogue: Catalogue) -> bool:
    return catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 1


def held_clients(catalogue: Catalogue) -> bool:
    """Whether a command of somebody waits for the pause to end."""
    return int(catalogue.redis.info("clients")["blocked_clients"]) > 1


def reap_until(valkey_url: str, catalogue: Catalogue, done: Callable[[], bool]) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        reaper = Reaper(client, BillingMetrics())

        def reaped() -> bool:
            reaper.reap_once()
            return done()

        wait_until(reaped, "the end of all reservations")


@pytest.mark.parametrize(
    ("point", "prompt"),
    [
        ("dispatched", "[[fault:hang=silent]]"),
        ("head_received", "[[fault:hang=headers]]"),
        ("first_token", "[[fault:stall_after_tokens=1]]"),
        ("middle", "[[fault:stall_after_tokens=20]]"),
        ("last_token", "[[fault:stall_after_tokens=39]]"),
    ],
)
def test_fault_37_kill_9_while_the_engine_works(
    point: str,
    prompt: str,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    valkey_url: str,
) -> None:
    engine = make_engine("--decode-ms", "5")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_LEASE_MS="1000", TAAS_CHECKPOINT_MS="50")
    caller = ask(gateway, key, prompt)
    wait_until(lambda: is_open(catalogue) and bool(engine.requests()), point)
    tokens = {"first_token": 1, "middle": 20, "last_token": 39}.get(point, 0)
    (request_id,) = catalogue.redis.zrange(redis_keys.open_requests(MODEL), 0, -1)
    reservation = redis_keys.reservation(MODEL, request_id)
    wait_until(lambda: int(catalogue.redis.hget(reservation, "o") or 0) >= tokens, "checkpoint")
    gateway.kill()
    caller.join()
    reap_until(valkey_url, catalogue, lambda: len(catalogue.events()) == 1 and not is_open(catalogue))
    (event,) = catalogue.events()
    assert event.ending is Ending.GATEWAY_DIED
    assert event.billed.output == 0
    assert event.absorbed.output == tokens == engine.counters()["generation"]


def test_fault_37_kill_9_while_a_reserve_is_in_doubt(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, valkey_url: str
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_LEASE_MS="1000")
    with gateway.client(key) as client:
        client.get("/v1/models")
    with writes_held(catalogue.redis):
        caller = ask(gateway, key, "hello")
        wait_until(lambda: held_clients(catalogue), "a reserve in doubt")
        gateway.kill()
        caller.join()
    reap_until(valkey_url, catalogue, lambda: not is_open(catalogue))
    assert [event.ending for event in catalogue.events()] in ([], [Ending.GATEWAY_DIED])
    assert not engine.requests()


def test_fault_37_kill_9_while_a_settle_is_in_doubt(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway, valkey_url: str
) -> None:
    engine = make_engine("--decode-ms", "10")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_LEASE_MS="1000", TAAS_REDIS_TIMEOUT_MS="30000")
    caller = ask(gateway, key, "hello")
    wait_until(lambda: is_open(catalogue) and engine.counters()["generation"] > 5, "stream")
    with writes_held(catalogue.redis):
        caller.join()
        assert engine.counters()["generation"] == 40
        gateway.kill()
    reap_until(valkey_url, catalogue, lambda: not is_open(catalogue) and len(catalogue.events()) == 1)
    (event,) = catalogue.events()
    # What was in doubt either arrived, or never did; never both.
    if event.ending is Ending.COMPLETE:
        assert event.billed.output == 40
    else:
        assert event.ending is Ending.GATEWAY_DIED
        assert event.billed.output == 0
    assert event.produced.output <= 40


def test_fault_37_a_journal_left_by_a_killed_gateway_is_sent_by_the_next(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway, valkey_url: str
) -> None:
    engine = make_engine("--decode-ms", "10")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_REDIS_TIMEOUT_MS="200")
    caller = ask(gateway, key, "hello")
    wait_until(lambda: is_open(catalogue) and engine.counters()["generation"] > 5, "stream")
    with writes_held(catalogue.redis):
        caller.join()
        wait_until(lambda: "journal" in gateway.log(), "journal entry")
        gateway.kill()
        # What the server had taken in dies with the connections that brought it.
        for connection in catalogue.redis.client_list():
            if connection["id"] != str(catalogue.redis.client_id()):
                catalogue.redis.client_kill_filter(_id=connection["id"])
    gateway.start()
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.COMPLETE
    assert event.billed.output == 40 == engine.counters()["generation"]
    wait_until(lambda: not is_open(catalogue), "end of the reservation")
    assert len(catalogue.events()) == 1
