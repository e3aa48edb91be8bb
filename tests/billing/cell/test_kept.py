"""Places that are kept for owners: on-demand, which cannot be stopped, waits before them; flex, which can,
has them.
"""

import redis

from billing.cell.replies import Reserved, Waiting
from billing.cell.scripts import Tier
from billing.wire import redis_keys
from tests.billing.cell.plan import Listener, flight_field, plan_anew, set_room, waits
from tests.billing.cell.requests import CELL, CellRequest


def keep(client: redis.Redis, most: int, on_demand: int) -> None:
    """Room of one instance, of which on-demand may have so many."""
    set_room(client, {"i-1": (most, most)})
    client.hset(redis_keys.room(CELL), "d:i-1", on_demand)


def flex(client: redis.Redis, request_id: str) -> CellRequest:
    return CellRequest(client=client, request_id=request_id, tenant="flexible", asked=Tier.FLEX, wait_max=10)


def test_flex_has_what_on_demand_may_not(valkey: redis.Redis, gateway: Listener) -> None:
    keep(valkey, 3, 1)
    assert isinstance(CellRequest(client=valkey, request_id="first").reserve(), Reserved)
    waits(valkey, "second")
    assert isinstance(flex(valkey, "f1").reserve(), Reserved)
    assert isinstance(flex(valkey, "f2").reserve(), Reserved)
    assert isinstance(flex(valkey, "f3").reserve(), Waiting)


def test_on_demand_comes_first_where_it_may_have_the_place(valkey: redis.Redis, gateway: Listener) -> None:
    keep(valkey, 2, 1)
    first = CellRequest(client=valkey, request_id="first")
    first.reserve()
    waits(valkey, "second")
    assert isinstance(flex(valkey, "f1").reserve(), Reserved)
    assert isinstance(flex(valkey, "f2").reserve(), Waiting)
    first.settle()
    assert gateway.woken() == ["second"]


def test_flex_that_waits_is_given_what_is_kept_while_on_demand_waits(
    valkey: redis.Redis, gateway: Listener
) -> None:
    keep(valkey, 2, 1)
    CellRequest(client=valkey, request_id="first").reserve()
    running = flex(valkey, "f1")
    running.reserve()
    waits(valkey, "second")
    assert isinstance(flex(valkey, "f2").reserve(), Waiting)
    running.settle()
    assert gateway.woken() == ["f2"]


def test_more_is_lent_as_soon_as_the_plan_says_so(valkey: redis.Redis, gateway: Listener) -> None:
    keep(valkey, 2, 1)
    CellRequest(client=valkey, request_id="first").reserve()
    waits(valkey, "second")
    valkey.hset(redis_keys.room(CELL), "d:i-1", 2)
    plan_anew(valkey)
    assert gateway.woken() == ["second"]


def test_how_many_have_run_for_long_is_counted_with_each_plan(valkey: redis.Redis) -> None:
    set_room(valkey, {"i-1": (9, 9)})
    for name, asked in (
        ("o1", Tier.ON_DEMAND),
        ("o2", Tier.ON_DEMAND),
        ("f1", Tier.FLEX),
    ):
        CellRequest(client=valkey, request_id=name, asked=asked, sequences=2).reserve()
    plan_anew(valkey)
    assert flight_field(valkey, "l:i-1") == 0
    for name in ("o1", "f1"):
        valkey.hincrby(redis_keys.reservation(CELL, name), "at", -3_000)
    plan_anew(valkey)
    assert flight_field(valkey, "l:i-1") == 2
    CellRequest(client=valkey, request_id="o1", sequences=2).settle()
    plan_anew(valkey)
    assert flight_field(valkey, "l:i-1") == 0
