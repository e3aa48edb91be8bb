"""A contract that queues, through two gateways: those who wait are served in the order in which they came,
and who waits in vain is counted.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from billing.wire import redis_keys
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import ask
from tests.gateway.test_waiting import assert_nothing_left, contract

# Less than one request holds: each waits until the one before it has drained.
UNITS_S = 20


def level_mu(catalogue: Catalogue, seconds: float) -> None:
    """As if the contract had been used so that it takes nobody for so long."""
    key = redis_keys.contract_bucket(MODEL, "ten_owner")
    now_s, us = catalogue.redis.time()
    catalogue.redis.hset(key, mapping={"u": int((seconds + 1) * UNITS_S * 1000), "t": now_s * 1_000_000 + us})


def test_those_who_wait_for_a_contract_are_served_in_the_order_in_which_they_came(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(engine.url, engine.key)
    gateways = [start_gateway(), start_gateway()]
    key = catalogue.key(catalogue.tenant("ten_owner"))
    contract(catalogue, "ten_owner", UNITS_S, "queue")
    line = redis_keys.waiting_requests(MODEL, "r", "ten_owner")
    level_mu(catalogue, 3_600)
    waiting = []
    for number in range(4):
        tier = {"service_tier": "priority"} if number % 3 == 0 else {}
        waiting.append(pool.submit(ask, gateways[number % 2], key, "chat", max_tokens=3, **tier))
        wait_until(lambda: catalogue.redis.zcard(line) == len(waiting), "one more in the queue")
    order = list(catalogue.redis.zrange(line, 0, -1))
    level_mu(catalogue, 0)
    # They were told of an hour; whoever leaves says to the first that things may have changed.
    catalogue.redis.publish(redis_keys.wake_channel(gateway_of(catalogue, order[0])), order[0])
    answers = [each.result(30) for each in waiting]
    assert [(answer.status, answer.headers["x-taas-class"]) for answer in answers] == [(200, "reserved")] * 4
    assert [answer.request_id for answer in answers] == order
    events = {event.request_id: event for event in catalogue.await_events(4)}
    served = [events[request_id] for request_id in order]
    assert [event.decision and event.decision["why"] for event in served] == ["waited"] * 4
    admitted_ms = [event.started_ms + event.waited_ms for event in served]
    assert min(after - before for before, after in pairwise(admitted_ms)) > 100
    assert_nothing_left(catalogue)


def gateway_of(catalogue: Catalogue, request_id: str) -> str:
    return str(catalogue.redis.hget(redis_keys.reservation(MODEL, request_id), "gw"))


def test_who_waits_for_a_contract_in_vain_is_refused_and_counted(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    gateway = start_gateway(TAAS_WAIT_ON_DEMAND_S="0.5")
    key = catalogue.key(catalogue.tenant("ten_owner"))
    contract(catalogue, "ten_owner", UNITS_S, "queue")
    level_mu(catalogue, 60)
    refused = ask(gateway, key, "chat")
    assert (refused.status, refused.error_code()) == (429, "rate_limit_exceeded")
    assert 50_000 < int(refused.headers["retry-after-ms"]) < 90_000
    assert int(catalogue.redis.hget(redis_keys.contract_bucket(MODEL, "ten_owner"), "refused")) == 1
    assert engine.requests() == []
    assert_nothing_left(catalogue)
