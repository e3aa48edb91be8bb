"""Room by instance and class: what flex may have, who needs an instance of its own, and what changes of
the room do to those who wait.
"""

import pytest
import redis

from billing.cell.replies import Reserved, Waiting
from billing.cell.scripts import Tier
from billing.wire import redis_keys
from tests.billing.cell.plan import (
    TWO,
    Listener,
    flight,
    granted_at,
    instance_of,
    plan_anew,
    set_room,
    tenants_waiting,
    waits,
)
from tests.billing.cell.requests import CELL, CellRequest


def test_flex_waits_behind_on_demand(valkey: redis.Redis, gateway: Listener, full: CellRequest) -> None:
    waits(valkey, "f", tenant="a", asked=Tier.FLEX)
    waits(valkey, "o", tenant="b")
    full.settle()
    assert gateway.woken() == ["o"]
    CellRequest(client=valkey, request_id="o", tenant="b").leave()
    assert gateway.woken() == ["f"]
    assert flight(valkey) == {"f:i-1": 1}


def test_flex_has_only_its_part(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (4, 2)})
    for n in range(2):
        assert isinstance(
            CellRequest(client=valkey, request_id=f"f{n}", asked=Tier.FLEX, wait_max=1).reserve(),
            Reserved,
        )
    flex = waits(valkey, "f2", asked=Tier.FLEX)
    for n in range(2):
        assert isinstance(
            CellRequest(client=valkey, request_id=f"o{n}", tenant="b", wait_max=1).reserve(), Reserved
        )
    waits(valkey, "o2", tenant="b")
    CellRequest(client=valkey, request_id="f0").settle()
    assert gateway.woken() == ["o2"]
    CellRequest(client=valkey, request_id="o0", tenant="b").settle()
    assert gateway.woken() == ["f2"]
    assert instance_of(flex.reserve(1_000)) == "i-1"
    assert flight(valkey) == {"o:i-1": 2, "f:i-1": 2}


def test_many_sequences_wait_for_an_idle_instance_and_others_behind_them(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (2, 2), "i-2": (2, 2)})
    for n in range(4):
        CellRequest(client=valkey, request_id=f"h{n}", tenant="h", candidates=(TWO[n % 2],)).reserve()
    waits(valkey, "big", tenant="a", sequences=16, candidates=TWO)
    waits(valkey, "small", tenant="b", candidates=TWO)
    CellRequest(client=valkey, request_id="h0", tenant="h").settle()
    CellRequest(client=valkey, request_id="h1", tenant="h").settle()
    assert gateway.woken() == []
    CellRequest(client=valkey, request_id="h3", tenant="h").settle()
    assert gateway.woken() == ["big", "small"]
    assert flight(valkey) == {"o:i-1": 2, "o:i-2": 16}


def test_an_instance_without_room_takes_nothing_idle_or_not(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (0, 0)})
    waits(valkey, "r")
    plan_anew(valkey)
    assert gateway.woken() == []


def test_an_instance_that_nothing_bounds_is_a_place_beside_a_full_one(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    for n in range(30):
        assert (
            instance_of(CellRequest(client=valkey, request_id=f"r{n}", candidates=TWO, wait_max=1).reserve())
            == "i-2"
        )
    assert flight(valkey) == {"o:i-1": 1, "o:i-2": 30}


@pytest.mark.parametrize("removed", ["an instance", "all room"])
def test_room_taken_away_while_requests_wait_moves_them_to_what_there_is(
    valkey: redis.Redis, gateway: Listener, full: CellRequest, removed: str
) -> None:
    request = waits(valkey, "r")
    if removed == "an instance":
        set_room(valkey, {"i-2": (3, 3)})
        plan_anew(valkey)
        assert gateway.woken() == ["r"]
        assert granted_at(valkey, "r") == "i-2"
        request = CellRequest(client=valkey, request_id="r", candidates=TWO, wait_max=9)
    else:
        # Nothing bounds anything any more: a line that only settles shorten would never end.
        set_room(valkey, {})
        assert isinstance(
            CellRequest(client=valkey, request_id="new", tenant="new", wait_max=9).reserve(), Reserved
        )
    assert isinstance(request.reserve(1_000), Reserved)
    assert tenants_waiting(valkey) == {}


def test_who_waits_gets_a_slot_where_its_prompt_is_cached_if_there_is_one(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (0, 0), "i-2": (0, 0)})
    waits(valkey, "prefers", candidates=TWO, prefers="i-2")
    waits(valkey, "any", candidates=TWO)
    waits(valkey, "gone", candidates=TWO, prefers="i-9")
    waits(valkey, "late", candidates=TWO, prefers="i-2")
    set_room(valkey, {"i-1": (9, 9), "i-2": (1, 1)})
    plan_anew(valkey)
    assert gateway.woken() == ["prefers", "any", "gone", "late"]
    # The second to prefer it finds it full, and does not wait for it.
    granted = [granted_at(valkey, name) for name in ("prefers", "any", "gone", "late")]
    assert granted == ["i-2", "i-1", "i-1", "i-1"]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("prefers", "cached_mu", "read_mu"),
    [("", 0, 1_000), ("i-9", 900, 1_000), ("i-1", 900, 100), ("i-1", 2_000, 0)],
)
def test_a_prompt_that_should_be_cached_holds_up_others_by_the_rest_of_it(
    valkey: redis.Redis, gateway: Listener, prefers: str, cached_mu: int, read_mu: int, at_once: bool
) -> None:
    request = CellRequest(
        client=valkey, request_id="r", wait_max=9, prompt_mu=1_000, prefers=prefers, cached_mu=cached_mu
    )
    if not at_once:
        set_room(valkey, {"i-1": (0, 0)})
        assert isinstance(request.reserve(1_000), Waiting)
    set_room(valkey, {"i-1": (9, 9)})
    valkey.hset(redis_keys.room(CELL), "w:i-1", 1_000)
    if at_once:
        assert isinstance(request.reserve(1_000), Reserved)
    else:
        plan_anew(valkey)
        assert gateway.woken() == ["r"]
    assert float(valkey.hget(redis_keys.flight(CELL), "pl:i-1") or 0) == read_mu
