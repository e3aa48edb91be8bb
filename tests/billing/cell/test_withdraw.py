"""A request that was admitted and refused all the same, because its gateway did not get the reply: when it is
withdrawn, it is as if it had never been there.
"""

import redis

from billing.cell.replies import AlreadySettled, Reserved
from billing.wire import redis_keys
from tests.billing.cell.plan import Listener, contract_field, flight, flight_field, sign, state_of, waits
from tests.billing.cell.requests import CELL, CellRequest, limits_of, usage_events

LIMITS = limits_of(requests=1, units_mu=5_000, concurrency=1)


def test_a_withdrawn_request_has_used_nothing(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r", tenant_limits=LIMITS, key_limits=LIMITS)
    request.reserve(5_000)
    assert request.leave(withdrawn=True).dropped
    assert state_of(valkey, "r") is None
    assert valkey.zcard(redis_keys.open_requests(CELL)) == 0
    assert flight(valkey) == {}
    assert flight_field(valkey, "used") == 0
    assert usage_events(valkey) == []
    again = CellRequest(client=valkey, request_id="s", tenant_limits=LIMITS, key_limits=LIMITS)
    assert isinstance(again.reserve(5_000), Reserved)
    assert not request.leave(withdrawn=True).dropped
    assert again.tenant_level("c") == again.key_level("c") == 1


def test_what_it_took_of_a_contract_is_there_again(valkey: redis.Redis) -> None:
    sign(valkey, "acme", 1_000_000)
    request = CellRequest(client=valkey, request_id="r")
    request.reserve(300_000)
    assert request.leave(withdrawn=True).dropped
    assert contract_field(valkey, "acme", "u") == contract_field(valkey, "acme", "used") == 0


def test_its_slot_goes_to_the_next(valkey: redis.Redis, gateway: Listener, full: CellRequest) -> None:
    waits(valkey, "next")
    assert full.leave(withdrawn=True).dropped
    assert gateway.woken() == ["next"]


def test_one_that_may_still_be_served_stays_open(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r")
    request.reserve(5_000)
    assert not request.leave().dropped
    assert state_of(valkey, "r") == "open"


def test_one_that_has_ended_keeps_its_event(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r")
    request.reserve(5_000)
    request.settle(3_000)
    assert not request.leave(withdrawn=True).dropped
    assert isinstance(request.settle(3_000), AlreadySettled)
    assert len(usage_events(valkey)) == 1
