"""A model whose pool may be empty: its requests wait for an instance that is being started."""

from concurrent.futures import ThreadPoolExecutor

from billing.wire import redis_keys
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import ask


def test_requests_wait_for_the_first_instance_and_are_then_served(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.model(MODEL, wakes=True)
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    asked = [pool.submit(ask, gateway, key, "chat", stream) for stream in (False, True)]
    wait_until(lambda: catalogue.redis.exists(redis_keys.wanted(MODEL)) == 1, "word that it is wanted")
    assert 0 < catalogue.redis.pttl(redis_keys.wanted(MODEL)) <= 15_000
    assert not any(each.done() for each in asked)
    assert catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0, "nothing is held meanwhile"
    catalogue.instance(engine.url, engine.key)
    for each in asked:
        outcome = each.result(timeout=30)
        assert outcome.status == 200, outcome.text
    assert all(event.waited_ms > 100 for event in catalogue.await_events(2))


def test_no_more_wait_than_there_is_room_and_none_for_ever(
    catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.model(MODEL, wakes=True)
    gateway = start_gateway(TAAS_WAKE_REQUESTS="3", TAAS_WAKE_WAIT_S="4")
    key, other = (catalogue.key(catalogue.tenant(tenant)) for tenant in ("ten_a", "ten_b"))
    waits = [pool.submit(ask, gateway, key, "chat", False) for _ in range(3)]
    wait_until(lambda: any(each.done() for each in waits), "a refusal")
    assert sum(each.done() for each in waits) == 1, "a tenant has half of the room, rounded up"
    last = pool.submit(ask, gateway, other, "chat", False)
    for outcome in (*(each.result(timeout=30) for each in waits), last.result(timeout=30)):
        assert outcome.status == 503
        assert "no_instance" in outcome.text
        assert int(outcome.headers["retry-after-ms"]) >= 1000


def test_a_model_that_is_not_scaled_waits_for_nothing(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.model(MODEL)
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    assert ask(gateway, key, "chat", False).status == 503
    assert catalogue.redis.exists(redis_keys.wanted(MODEL)) == 0


def test_a_gateway_that_stops_lets_nobody_wait(
    catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.model(MODEL, wakes=True)
    gateway = start_gateway(TAAS_DRAIN_S="0.5", TAAS_UNREADY_S="0")
    asked = pool.submit(ask, gateway, catalogue.key(catalogue.tenant("ten_a")), "chat", False)
    wait_until(lambda: catalogue.redis.exists(redis_keys.wanted(MODEL)) == 1, "word that it is wanted")
    gateway.terminate()
    assert asked.result(timeout=20).status == 503
