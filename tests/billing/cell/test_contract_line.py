"""The line of a contract that queues: first come, first served, over all gateways; and nobody is left
behind who has gone.
"""

import pytest
import redis

from billing.cell.replies import Dropped, LimitReached, Reserved, WaitingForContract
from billing.cell.scripts import Tier
from billing.wire import redis_keys
from billing.wire.limits import LimitKind
from tests.billing.cell.plan import Listener, age_contract, contract_field, queue, sign, state_of
from tests.billing.cell.requests import CELL, CellRequest, Drained

RATE = 1_000_000


def full(client: redis.Redis, level_mu: int = 3 * RATE) -> None:
    """A contract that queues, and is used up for a while."""
    sign(client, "acme", RATE, "queue")
    assert isinstance(CellRequest(client=client, request_id="first").reserve(level_mu), Reserved)


def in_line(
    client: redis.Redis, request_id: str, gateway: str = "gw-1", asked: Tier = Tier.AUTO
) -> CellRequest:
    """One that stands in the contract's line."""
    request = CellRequest(client=client, request_id=request_id, gateway=gateway, wait_max=3, asked=asked)
    assert isinstance(request.reserve(RATE // 2), WaitingForContract)
    return request


def why(request: CellRequest, cost_mu: int = RATE // 2) -> tuple[str, str]:
    reply = request.reserve(cost_mu)
    assert isinstance(reply, Reserved), reply
    return reply.grant.class_, reply.grant.why


def test_who_comes_first_is_served_first_and_wakes_the_next(valkey: redis.Redis) -> None:
    left_ms = Drained(1)
    full(valkey)
    with Listener(valkey, "gw-1", "gw-2") as gateways:
        one, two = in_line(valkey, "one"), in_line(valkey, "two", "gw-2", Tier.RESERVED)
        three = in_line(valkey, "three")
        assert queue(valkey, "acme", "r") == ["one", "two", "three"]
        told = two.reserve(RATE // 2)
        assert isinstance(told, WaitingForContract)
        assert (told.before, told.after_ms) == (1, left_ms(2_500))
        assert gateways.woken() == []
        age_contract(valkey, "acme", 2.1)
        # Not even when there is room for one: it is that of the first.
        late = CellRequest(client=valkey, request_id="late", gateway="gw-2", wait_max=4)
        assert isinstance(late.reserve(RATE // 2), WaitingForContract)
        assert isinstance(three.reserve(RATE // 2), WaitingForContract)
        assert gateways.woken() == ["one", "one"]
        assert why(one) == ("reserved", "waited")
        assert gateways.woken() == ["two"]
        assert isinstance(two.reserve(RATE // 2), WaitingForContract)
        age_contract(valkey, "acme", 0.5)
        assert why(two) == ("reserved", "waited")
        assert gateways.woken() == ["three"]
    assert queue(valkey, "acme", "r") == ["three", "late"]
    assert contract_field(valkey, "acme", "refused") == 0


def test_those_whose_gateway_is_gone_hold_up_nobody(valkey: redis.Redis) -> None:
    full(valkey)
    with Listener(valkey, "gw-2") as gateways:
        in_line(valkey, "dead")
        in_line(valkey, "dead too")
        alive = in_line(valkey, "alive", "gw-2")
        age_contract(valkey, "acme", 2.1)
        assert isinstance(
            CellRequest(client=valkey, request_id="late", gateway="gw-2", wait_max=3).reserve(),
            WaitingForContract,
        )
        assert gateways.woken() == ["alive"]
        assert state_of(valkey, "dead") is state_of(valkey, "dead too") is None
        assert why(alive) == ("reserved", "waited")
    assert queue(valkey, "acme", "r") == ["late"]


def test_where_all_before_it_are_gone_it_is_served_at_once(valkey: redis.Redis) -> None:
    full(valkey)
    in_line(valkey, "dead")
    age_contract(valkey, "acme", 2.1)
    assert why(CellRequest(client=valkey, request_id="r", wait_max=3)) == ("reserved", "within_contract")


@pytest.mark.parametrize("refused", [True, False])
def test_who_leaves_wakes_the_next_and_counts_where_it_was_refused(
    valkey: redis.Redis, refused: bool
) -> None:
    level = Drained(RATE / 1000)
    full(valkey)
    with Listener(valkey, "gw-1", "gw-2") as gateways:
        one, _ = in_line(valkey, "one"), in_line(valkey, "two", "gw-2")
        assert one.leave(refused=refused).dropped
        assert gateways.woken() == ["two"]
        assert not one.leave(refused=refused).dropped
    assert queue(valkey, "acme", "r") == ["two"]
    assert contract_field(valkey, "acme", "refused") == refused
    assert contract_field(valkey, "acme", "u") == level(3 * RATE)


def test_a_reaped_one_is_out_of_line(valkey: redis.Redis) -> None:
    full(valkey)
    one = in_line(valkey, "one")
    one.let_lease_pass()
    assert isinstance(one.reap(), Dropped)
    assert queue(valkey, "acme", "r") == []
    assert valkey.zrange(redis_keys.open_requests(CELL), 0, -1) == ["first"]


def test_a_line_is_only_so_long(valkey: redis.Redis) -> None:
    full(valkey)
    for number in range(3):
        in_line(valkey, f"r-{number}")
    reply = CellRequest(client=valkey, request_id="one too many", wait_max=3).reserve(RATE // 2)
    assert isinstance(reply, LimitReached)
    assert reply.limit is LimitKind.CONTRACT
    # The queue drains while the test runs.
    assert 1_000 < (reply.retry_after_ms or 0) <= 3_501
    assert contract_field(valkey, "acme", "refused") == 1
    assert state_of(valkey, "one too many") is None


@pytest.mark.parametrize(
    ("overflow", "ends_in_s", "outcome"),
    [("spill", 3_600, ("on_demand", "spilled")), ("queue", -2, ("on_demand", "room"))],
)
def test_who_waits_for_a_contract_that_changes_or_ends_begins_anew(
    valkey: redis.Redis, overflow: str, ends_in_s: float, outcome: tuple[str, str]
) -> None:
    full(valkey)
    one = in_line(valkey, "one")
    sign(valkey, "acme", RATE, overflow, ends_in_s=ends_in_s)
    assert why(one) == outcome
    assert queue(valkey, "acme", "r") == []


def test_a_contract_that_rejects_from_now_on_refuses_who_waits_for_it(valkey: redis.Redis) -> None:
    full(valkey)
    one = in_line(valkey, "one")
    sign(valkey, "acme", RATE, "reject")
    assert isinstance(one.reserve(RATE // 2), LimitReached)
    sign(valkey, "acme", 0, "queue")
    assert queue(valkey, "acme", "r") == []
    assert valkey.zrange(redis_keys.open_requests(CELL), 0, -1) == ["first"]


def test_a_rate_that_becomes_nothing_refuses_who_waits_for_it(valkey: redis.Redis) -> None:
    full(valkey)
    one = in_line(valkey, "one")
    sign(valkey, "acme", 0, "queue")
    assert isinstance(one.reserve(RATE // 2), LimitReached)
    assert queue(valkey, "acme", "r") == []


def test_what_spilled_and_found_no_room_counts_as_refused(valkey: redis.Redis) -> None:
    valkey.hset(redis_keys.room(CELL), mapping={"m:i-1": 0, "x:i-1": 0})
    sign(valkey, "acme", RATE, "spill")
    assert isinstance(CellRequest(client=valkey, request_id="first").reserve(3 * RATE), Reserved)
    hasty = CellRequest(client=valkey, request_id="hasty").reserve(1_000)
    assert isinstance(hasty, LimitReached)
    assert contract_field(valkey, "acme", "refused") == 1
    patient = CellRequest(client=valkey, request_id="patient", wait_max=3)
    patient.reserve(1_000)
    patient.leave(refused=True)
    assert contract_field(valkey, "acme", "refused") == 2
    asked = CellRequest(client=valkey, request_id="asked", wait_max=3, asked=Tier.ON_DEMAND)
    asked.reserve(1_000)
    asked.leave(refused=True)
    assert contract_field(valkey, "acme", "refused") == 2
