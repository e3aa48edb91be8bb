"""Waiting for room: who is granted a place, how its gateway hears of it, and that a place that is not
taken goes on to the next.
"""

import pytest
import redis

from billing.cell.execute import execute
from billing.cell.replies import (
    Dropped,
    LimitReached,
    Missing,
    Replayed,
    Reserved,
    Settled,
    StillLeased,
    Waiting,
)
from billing.cell.scripts import Tier, grant_call
from billing.wire.limits import LimitKind
from billing.wire.tokens import Tokens
from tests.billing.cell.plan import (
    TWO,
    Listener,
    flight,
    flight_field,
    granted_at,
    instance_of,
    plan_anew,
    queue,
    set_room,
    state_of,
    tenants_waiting,
    virtual,
    waits,
)
from tests.billing.cell.requests import CELL, CellRequest, limits_of, usage_events


def test_a_settle_grants_its_place_and_wakes_the_gateway(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    request = waits(valkey, "r")
    assert gateway.woken() == []
    full.settle()
    assert gateway.woken() == ["r"]
    assert state_of(valkey, "r") == "granted"
    assert flight(valkey) == {"o:i-1": 1}
    assert tenants_waiting(valkey) == {}
    reply = request.reserve(1_000)
    assert isinstance(reply, Reserved)
    assert (reply.grant.class_, reply.grant.why, reply.grant.instance) == ("on_demand", "waited", "i-1")
    assert flight(valkey) == {"o:i-1": 1}
    assert isinstance(request.reserve(1_000), Replayed)


def test_waiting_consumes_nothing(valkey: redis.Redis, full: CellRequest) -> None:
    request = waits(valkey, "r", tenant_limits=limits_of(requests=5, units_mu=9_000, concurrency=1))
    assert request.tenant_level("c") == request.tenant_level("r") == request.tenant_level("u") == 0
    assert virtual(valkey, "acme") == flight_field(valkey, "used") == 0
    assert flight(valkey) == {"o:i-1": 1}


def test_asking_again_while_it_waits_renews_and_keeps_its_turn(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    first, second = waits(valkey, "first"), waits(valkey, "second")
    for _ in range(2):
        first.let_lease_pass()
        assert isinstance(first.reserve(1_000), Waiting)
        assert isinstance(first.reap(), StillLeased)
    assert queue(valkey, "acme") == ["first", "second"]
    full.settle()
    assert gateway.woken() == ["first"]
    assert isinstance(second.reserve(1_000), Waiting)


def test_a_line_is_bounded_for_each_tenant(valkey: redis.Redis, full: CellRequest) -> None:
    for n in range(3):
        assert isinstance(CellRequest(client=valkey, request_id=f"r{n}", wait_max=3).reserve(), Waiting)
    refused = CellRequest(client=valkey, request_id="r3", wait_max=3).reserve()
    assert isinstance(refused, LimitReached)
    assert refused.limit is LimitKind.ROOM
    assert (refused.retry_after_ms or 0) >= 1_000
    assert state_of(valkey, "r3") is None
    assert isinstance(
        CellRequest(client=valkey, request_id="o", tenant="other", wait_max=3).reserve(), Waiting
    )
    # A line of each class.
    assert isinstance(
        CellRequest(client=valkey, request_id="f", wait_max=3, asked=Tier.FLEX).reserve(), Waiting
    )


def test_a_grant_nobody_hears_goes_to_the_next(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    gone = waits(valkey, "gone", gateway="gw-dead")
    waits(valkey, "r", tenant="next")
    full.settle()
    assert gateway.woken() == ["r"]
    assert state_of(valkey, "gone") is None
    assert flight(valkey) == {"o:i-1": 1}
    assert virtual(valkey, "acme") == 0
    # It was alive after all: it joins the queue again.
    assert isinstance(gone.reserve(1_000), Waiting)


@pytest.mark.parametrize("state", ["waiting", "granted"])
def test_who_leaves_gives_back_what_it_had(
    valkey: redis.Redis, gateway: Listener, full: CellRequest, state: str
) -> None:
    leaver = waits(valkey, "leaver")
    waits(valkey, "r", tenant="next")
    if state == "granted":
        full.settle()
    assert state_of(valkey, "leaver") == state
    left = leaver.leave()
    assert left.dropped
    assert state_of(valkey, "leaver") is None
    assert virtual(valkey, "acme") == 0
    assert not leaver.leave().dropped
    if state == "waiting":
        full.settle()
    assert gateway.woken()[-1] == "r"
    assert flight(valkey) == {"o:i-1": 1}


def test_leaving_ends_no_open_request_and_makes_none(valkey: redis.Redis, full: CellRequest) -> None:
    assert not full.leave().dropped
    assert state_of(valkey, "holder") == "open"
    assert not CellRequest(client=valkey, request_id="never").leave().dropped
    assert state_of(valkey, "never") is None


def test_a_place_too_small_for_who_left_goes_to_who_stood_behind(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (4, 4)})
    CellRequest(client=valkey, request_id="holder", tenant="holder", sequences=2).reserve()
    big = waits(valkey, "big", tenant="big", sequences=4)
    waits(valkey, "small", tenant="small")
    assert gateway.woken() == []
    big.leave()
    assert gateway.woken() == ["small"]


def test_a_granted_request_refused_by_its_own_limits_hands_its_place_on(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    one = waits(valkey, "limited", tenant_limits=limits_of(concurrency=1))
    waits(valkey, "r", tenant="next")
    # Another request of the tenant, of zero sequences, takes its only slot meanwhile.
    CellRequest(
        client=valkey, request_id="count", sequences=0, tenant_limits=limits_of(concurrency=1)
    ).reserve()
    full.settle()
    assert gateway.woken() == ["limited"]
    refused = one.reserve(1_000)
    assert isinstance(refused, LimitReached)
    assert refused.limit is LimitKind.CONCURRENCY
    assert gateway.woken() == ["r"]
    assert flight(valkey)["o:i-1"] == 1
    assert state_of(valkey, "limited") is None


def test_a_waiting_request_refused_by_its_own_limits_is_out_of_line(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    one = waits(valkey, "limited", tenant_limits=limits_of(concurrency=1))
    CellRequest(
        client=valkey, request_id="count", sequences=0, tenant_limits=limits_of(concurrency=1)
    ).reserve()
    assert isinstance(one.reserve(1_000), LimitReached)
    assert tenants_waiting(valkey) == {}
    full.settle()
    assert gateway.woken() == []


def test_a_grant_whose_lease_passed_may_be_taken_until_it_is_reaped(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    late, reaped = waits(valkey, "late"), waits(valkey, "reaped")
    full.settle()
    assert isinstance(late.reap(), StillLeased)
    late.let_lease_pass()
    assert isinstance(late.reserve(1_000), Reserved)
    late.settle(1_000)
    assert gateway.woken() == ["late", "reaped"]
    waits(valkey, "r", tenant="next")
    reaped.let_lease_pass()
    assert isinstance(reaped.reap(), Dropped)
    assert isinstance(reaped.reap(), Missing)
    assert gateway.woken() == ["r"]
    assert isinstance(reaped.reserve(1_000), Waiting)
    assert queue(valkey, "acme") == ["reaped"]
    assert [event["request_id"] for event in usage_events(valkey)] == ["holder", "late"]


def test_who_waits_and_is_not_heard_of_is_passed_over(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    waits(valkey, "dead", gateway="gone")
    waits(valkey, "r")
    full.settle()
    assert gateway.woken() == ["r"]
    assert state_of(valkey, "dead") is None


def test_fault_40_who_waits_keeps_its_turn_when_redis_clock_jumps_past_its_lease(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    first, _ = waits(valkey, "first"), waits(valkey, "second")
    first.let_lease_pass()
    full.settle()
    assert gateway.woken() == ["first"]
    assert isinstance(first.reserve(1_000), Reserved)


def test_fault_40_prompts_are_read_on_after_redis_clock_went_back(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (9, 9)})
    valkey.hset("{c:pool-1}:room", "w:i-1", 1_000)
    hour_ahead = int((valkey.time()[0] + 3_600) * 1e6)
    valkey.hset("{c:pool-1}:flight", mapping={"pl:i-1": 1_000_000, "pt:i-1": hour_ahead})
    waits(valkey, "r")
    read_since = flight_field(valkey, "pt:i-1")
    assert read_since < hour_ahead
    valkey.hset("{c:pool-1}:flight", "pt:i-1", int(read_since - 1_001e6))
    execute(valkey, grant_call(CELL, recount=False))
    assert gateway.woken() == ["r"]


def test_a_place_where_its_gateway_sees_no_instance_is_handed_on(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (0, 0), "i-2": (0, 0)})
    blind = waits(valkey, "blind", tenant="a")
    sees = waits(valkey, "sees", tenant="b", candidates=TWO)
    set_room(valkey, {"i-1": (0, 0), "i-2": (1, 1)})
    plan_anew(valkey)
    assert gateway.woken() == ["blind"]
    assert isinstance(blind.reserve(1_000), Waiting)
    assert gateway.woken() == ["sees"]
    assert instance_of(sees.reserve(1_000)) == "i-2"
    assert queue(valkey, "a") == ["blind"]


def test_who_asks_gets_no_place_that_it_cannot_see(valkey: redis.Redis, gateway: Listener) -> None:
    """It would be woken, find nothing, and be granted the same place again, as fast as the wire allows."""
    set_room(valkey, {"i-1": (0, 0), "i-2": (1, 1)})
    blind = waits(valkey, "blind")
    assert isinstance(blind.reserve(1_000), Waiting)
    assert gateway.woken() == []
    assert flight(valkey) == {}


def test_a_place_it_cannot_see_and_no_line_to_go_back_to_is_handed_on(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (0, 0), "i-2": (0, 0)})
    blind = CellRequest(client=valkey, request_id="blind", tenant="a", wait_max=1)
    assert isinstance(blind.reserve(1_000), Waiting)
    set_room(valkey, {"i-1": (0, 0), "i-2": (1, 1)})
    plan_anew(valkey)
    for n in (1, 2):
        waits(valkey, f"more{n}", tenant="a", candidates=TWO)
    assert gateway.woken() == ["blind"]
    refused = blind.reserve(1_000)
    assert isinstance(refused, LimitReached)
    assert refused.limit is LimitKind.ROOM
    assert flight(valkey) == {"o:i-2": 1}
    assert gateway.woken() == ["more1"]


def test_it_may_have_another_place_than_the_one_granted(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (1, 1), "i-2": (1, 1)})
    for n in (1, 2):
        CellRequest(client=valkey, request_id=f"h{n}", tenant="h", candidates=((f"i-{n}", "e"),)).reserve()
    request = waits(valkey, "r")
    CellRequest(client=valkey, request_id="h2", tenant="h").settle()
    assert granted_at(valkey, "r") == "i-2"
    CellRequest(client=valkey, request_id="h1", tenant="h").settle()
    assert instance_of(request.reserve(1_000)) == "i-1"
    assert flight(valkey) == {"o:i-1": 1}
    assert virtual(valkey, "acme") == 1_000


def test_who_asks_when_those_before_are_gone_has_its_place_at_once(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    """A wake sent before its own answer would find nobody: there must be none to lose."""
    for n in range(3):
        waits(valkey, f"dead{n}", tenant="a-dead", gateway="gone")
    valkey.hset("{c:pool-1}:room", "m:i-1", 2)
    reply = CellRequest(client=valkey, request_id="r", wait_max=9).reserve(1_000)
    assert instance_of(reply) == "i-1"
    assert tenants_waiting(valkey) == {}
    assert gateway.woken() == []


def test_a_renewal_that_is_granted_answers_with_the_place(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    request = waits(valkey, "r", gateway="gw-reconnecting")
    valkey.hset("{c:pool-1}:room", "m:i-1", 2)
    assert instance_of(request.reserve(1_000)) == "i-1"
    assert flight(valkey) == {"o:i-1": 2}


def test_a_lost_wake_is_sent_again_with_the_next_plan(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    request = waits(valkey, "r")
    full.settle()
    assert gateway.woken() == ["r"]
    plan_anew(valkey)
    assert gateway.woken() == ["r"]
    request.reserve(1_000)
    plan_anew(valkey)
    assert gateway.woken() == []


@pytest.mark.parametrize("state", ["waiting", "granted"])
def test_what_was_served_without_its_place_is_recorded_all_the_same(
    valkey: redis.Redis, gateway: Listener, full: CellRequest, state: str
) -> None:
    """Redis answered too late, the gateway served it by its own lease, and settles what the cell takes for
    waiting.
    """
    request = waits(valkey, "r")
    waits(valkey, "after", tenant="next")
    if state == "granted":
        full.settle()
    reply = request.settle(9_000, Tokens(10, 0, 7))
    assert isinstance(reply, Settled)
    assert reply.orphan
    assert usage_events(valkey)[-1]["request_id"] == "r"
    assert queue(valkey, "acme") == []
    assert virtual(valkey, "acme") == 0
    if state == "waiting":
        full.settle()
    assert gateway.woken()[-1] == "after"
    assert flight(valkey) == {"o:i-1": 1}


def test_the_time_between_grants_does_not_count_when_nobody_waited(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    waits(valkey, "a")
    full.settle()
    CellRequest(client=valkey, request_id="a").reserve(1_000)
    valkey.hset("{c:pool-1}:flight", "gt", int(flight_field(valkey, "gt") - 3_600e6))
    waits(valkey, "b")
    CellRequest(client=valkey, request_id="a").settle(1_000)
    waits(valkey, "c")
    left = CellRequest(client=valkey, request_id="c").leave()
    assert left.tenants_waiting == 1
    assert left.between_grants_ms < 60_000


def test_a_dead_gateways_crowd_does_not_stop_the_cell(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    """A script is alone on the server: what it clears away in one run is bounded, and the next run goes
    on.
    """
    for n in range(2_000):
        waits(valkey, f"dead{n}", tenant=f"t{n % 50}", gateway="gw-dead")
    waits(valkey, "r", tenant="z")
    valkey.config_resetstat()
    full.settle()
    stats = valkey.info("commandstats")["cmdstat_fcall"]
    assert stats["usec"] < 50_000
    for _ in range(30):
        plan_anew(valkey)
    assert gateway.woken()[0] == "r"
    assert tenants_waiting(valkey) == {}
    assert flight(valkey) == {"o:i-1": 1}
