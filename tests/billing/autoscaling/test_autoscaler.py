"""From load in Redis and contracts in SQL to a number that everybody sees."""

import time
from collections.abc import Mapping
from functools import partial

import pytest
import redis
from sqlalchemy import Connection, Engine

from billing.autoscaling import store
from billing.autoscaling.autoscaler import Autoscaler
from billing.autoscaling.decide import Bounds, Decision, Why
from billing.catalogue import models
from billing.catalogue.tenants import find
from billing.contracts import lifecycle
from billing.refusals import Invalid, NotFound
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from tests.billing.contracts.selling import DAY, POOL, furnish, terms


@pytest.fixture
def shown() -> dict[str, int]:
    """What was shown last, by pool."""
    return {}


@pytest.fixture
def scaled(database: Engine) -> Engine:
    """A pool of six machines of 1,000 units and 16 slots, scaled from none to five."""
    with database.begin() as connection:
        furnish(connection, instances=6)
        store.put(connection, POOL, Bounds(0, 5))
    return database


@pytest.fixture
def autoscaler(scaled: Engine, raw_redis: redis.Redis, shown: dict[str, int]) -> Autoscaler:
    return Autoscaler(scaled, raw_redis, partial(show, shown))


def register(client: redis.Redis, *names: str, pool: str = POOL) -> None:
    for name in names:
        entry = InstanceEntry(
            instance=name, model=POOL, pool=pool, cell=POOL, url="http://10.0.0.1:1", key=None, epoch="e",
            status=InstanceStatus.READY,
        )  # fmt: skip
        client.hset(redis_keys.INSTANCES, name, entry.to_json())


def decision(engine: Engine) -> Decision | None:
    with engine.connect() as connection:
        return store.find(connection, POOL).decision


def show(shown: dict[str, int], desired: Mapping[str, int]) -> None:
    shown.clear()
    shown.update(desired)


def test_load_is_what_runs_and_waits_on_demand_and_reserved(
    autoscaler: Autoscaler, scaled: Engine, raw_redis: redis.Redis, shown: dict[str, int]
) -> None:
    register(raw_redis, "one", "two")
    register(raw_redis, "embeds", pool=f"{POOL}/pooling")
    flight = redis_keys.flight(POOL)
    raw_redis.hset(flight, mapping={"r:one": 10, "o:one": 5, "o:two": 4, "f:two": 90, "o:embeds": 90})
    raw_redis.zadd(redis_keys.waiting_tenants(POOL, "o"), {"ten_a": 1})
    raw_redis.zadd(redis_keys.waiting_requests(POOL, "o", "ten_a"), {f"r{each}": each for each in range(8)})
    autoscaler.round()
    assert decision(scaled) == Decision(3, Why.LOAD)  # 27 of 12.8 each
    assert shown[POOL] == 3
    raw_redis.delete(flight)
    autoscaler.round()
    assert decision(scaled) == Decision(3, Why.CALM), "it was needed a moment ago"


def test_contracts_hold_instances_that_nobody_uses(
    autoscaler: Autoscaler, scaled: Engine, shown: dict[str, int]
) -> None:
    now_ms = int(time.time() * 1000)
    with scaled.begin() as connection:
        tenant = acme(connection)
        made = lifecycle.draft(connection, terms(tenant, 3500, now_ms, now_ms + DAY), now_ms=now_ms)
        lifecycle.sign(connection, made.contract_id, now_ms=now_ms)
    autoscaler.round()
    assert decision(scaled) == Decision(4, Why.CONTRACTS)
    assert shown[POOL] == 4


def test_requests_without_an_instance_wake_the_pool(
    autoscaler: Autoscaler, scaled: Engine, raw_redis: redis.Redis, shown: dict[str, int]
) -> None:
    autoscaler.round()
    assert decision(scaled) == Decision(0, Why.MINIMUM)
    assert shown[POOL] == 0
    raw_redis.set(redis_keys.wanted(POOL), 1)
    autoscaler.round()
    assert decision(scaled) == Decision(1, Why.WOKEN)


def test_what_runs_on_idle_capacity_alone_keeps_the_last_instance(
    autoscaler: Autoscaler, scaled: Engine, raw_redis: redis.Redis, shown: dict[str, int]
) -> None:
    """Lines of a batch, say: they would be cut off, and wake the pool again at once."""
    register(raw_redis, "one")
    raw_redis.hset(redis_keys.flight(POOL), mapping={"f:one": 90})
    autoscaler.round()
    assert decision(scaled).instances == 1


def test_the_next_leader_gives_up_nothing_that_the_last_one_wanted(
    autoscaler: Autoscaler, scaled: Engine, raw_redis: redis.Redis, shown: dict[str, int]
) -> None:
    register(raw_redis, "one")
    raw_redis.hset(redis_keys.flight(POOL), mapping={"o:one": 40})
    autoscaler.round()
    assert decision(scaled) == Decision(4, Why.LOAD)
    raw_redis.delete(redis_keys.flight(POOL))
    Autoscaler(scaled, raw_redis, partial(show, shown)).round()
    assert decision(scaled) == Decision(4, Why.CALM)


def test_a_pool_that_is_not_scaled_any_more_has_no_number(
    autoscaler: Autoscaler, scaled: Engine, shown: dict[str, int]
) -> None:
    autoscaler.round()
    with scaled.begin() as connection:
        store.remove(connection, POOL)
    autoscaler.round()
    assert shown == {}


def test_bounds_that_a_pool_cannot_have_are_refused(database: Engine) -> None:
    with database.begin() as connection:
        with pytest.raises(NotFound):
            store.put(connection, "none", Bounds(0, 1))
        furnish(connection, instances=2)
        with pytest.raises(Invalid, match="has 2 instances in all"):
            store.put(connection, POOL, Bounds(1, 3))
        with pytest.raises(Invalid, match="more than the maximum"):
            store.put(connection, POOL, Bounds(2, 1))
        with pytest.raises(NotFound, match="is not scaled"):
            store.remove(connection, POOL)


def test_a_pool_that_was_neither_measured_nor_declared_is_scaled_by_a_guess(
    database: Engine, raw_redis: redis.Redis, shown: dict[str, int]
) -> None:
    with database.begin() as connection:
        models.create(connection, models.ModelSpec(name=POOL, context_tokens=4096))
        store.put(connection, POOL, Bounds(1, 3))
    register(raw_redis, "one")
    raw_redis.hset(redis_keys.flight(POOL), mapping={"o:one": 14})
    Autoscaler(database, raw_redis, partial(show, shown)).round()
    assert decision(database) == Decision(2, Why.LOAD)


def acme(connection: Connection) -> str:
    return find(connection, "acme").tenant_id
