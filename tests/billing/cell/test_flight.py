"""What is in flight: counted by class and instance, counted anew from what is open, moved, and no dearer
with a long line.
"""

import pytest
import redis

from billing.cell.replies import AlreadySettled, Missing, Renewed, Replayed, Reserved, Settled, Stale, Waiting
from billing.cell.scripts import Tier
from billing.wire import redis_keys
from billing.wire.tokens import Tokens
from tests.billing.cell.plan import (
    TWO,
    Listener,
    contract_field,
    flight,
    flight_field,
    plan_anew,
    set_room,
    sign,
    state_of,
    tenants_waiting,
    virtual,
    waits,
)
from tests.billing.cell.requests import CELL, CellRequest, usage_events

# Its greatest leases and rounds aside, a step must cost the same in a long line; a machine that does other
# things is not that exact.
FACTOR = 3


def fly_all_classes(client: redis.Redis) -> list[CellRequest]:
    """One of each class and one without tokens, open at the first instance."""
    sign(client, "acme", 10**9)
    requests = [
        CellRequest(client=client, request_id="r", sequences=2),
        CellRequest(client=client, request_id="o", asked=Tier.ON_DEMAND, sequences=3),
        CellRequest(client=client, request_id="f", asked=Tier.FLEX),
        CellRequest(client=client, request_id="z", sequences=0),
    ]
    for request in requests:
        assert isinstance(request.reserve(1_000), Reserved)
    return requests


def test_each_class_is_counted_where_it_is(valkey: redis.Redis) -> None:
    requests = fly_all_classes(valkey)
    assert flight(valkey) == {"r:i-1": 2, "o:i-1": 3, "f:i-1": 1}
    for request in requests:
        request.settle(1_000)
    assert flight(valkey) == {}


def test_a_count_that_went_wrong_is_made_anew(valkey: redis.Redis) -> None:
    fly_all_classes(valkey)
    before = flight(valkey)
    valkey.hset("{c:pool-1}:flight", mapping={"o:i-1": 40, "f:i-gone": 7})
    valkey.hdel("{c:pool-1}:flight", "r:i-1")
    plan_anew(valkey)
    assert flight(valkey) == before
    # Nor does it keep a field of every instance that there ever was.
    assert not valkey.hexists("{c:pool-1}:flight", "f:i-gone")


def test_who_moves_is_counted_where_it_goes(valkey: redis.Redis) -> None:
    requests = fly_all_classes(valkey)
    for request in requests[:3]:
        for _ in range(2):
            assert isinstance(request.checkpoint(Tokens(5, 0, 1), 5_000, moved_to=("i-2", "e-2")), Renewed)
    assert flight(valkey) == {"r:i-2": 2, "o:i-2": 3, "f:i-2": 1}
    plan_anew(valkey)
    assert flight(valkey) == {"r:i-2": 2, "o:i-2": 3, "f:i-2": 1}
    assert isinstance(requests[0].checkpoint(Tokens(5, 0, 0), 5_000, moved_to=("i-1", "e-1")), Stale)
    for request in requests:
        request.settle(1_000)
    assert flight(valkey) == {}


def test_flex_that_moved_may_be_preempted_where_it_is(valkey: redis.Redis, gateway: Listener) -> None:
    flex = CellRequest(client=valkey, request_id="f", asked=Tier.FLEX)
    flex.reserve()
    flex.checkpoint(Tokens(5, 0, 1), 5_000, moved_to=("i-2", "e-2"))
    set_room(valkey, {"i-1": (1, 1), "i-2": (1, 0)})
    valkey.hset("{c:pool-1}:room", "g:i-2", 1)
    plan_anew(valkey)
    assert gateway.woken() == ["!f"]


def test_every_step_may_be_told_twice(valkey: redis.Redis, gateway: Listener, full: CellRequest) -> None:
    sign(valkey, "acme", 10**6, "spill")
    owner = CellRequest(client=valkey, request_id="owner")
    owner.reserve(2_000_000)
    spilled = CellRequest(client=valkey, request_id="s", wait_max=5)

    def twice(first: object, second: object, expected: tuple[type, type]) -> None:
        assert (type(first), type(second)) == expected

    twice(spilled.reserve(9_000), spilled.reserve(9_000), (Waiting, Waiting))
    full.settle()
    full.settle()
    assert gateway.woken() == ["s"]
    twice(spilled.reserve(9_000), spilled.reserve(9_000), (Reserved, Replayed))
    usage = Tokens(1, 0, 7)
    twice(spilled.checkpoint(usage, 29_000), spilled.checkpoint(usage, 29_000), (Renewed, Renewed))
    assert contract_field(valkey, "acme", "borrowed") == virtual(valkey, "acme") == 29_000
    twice(spilled.settle(20_000), spilled.settle(20_000), (Settled, AlreadySettled))
    twice(owner.settle(1_000), owner.settle(1_000), (Settled, AlreadySettled))
    leaver = CellRequest(client=valkey, request_id="l", tenant="l")
    assert not leaver.leave().dropped
    assert not leaver.leave().dropped
    twice(leaver.reap(), leaver.reap(), (Missing, Missing))
    assert contract_field(valkey, "acme", "borrowed") == virtual(valkey, "acme") == 20_000
    assert contract_field(valkey, "acme", "used") == 1_000
    assert flight_field(valkey, "used") == 21_000
    assert flight(valkey) == {}
    assert len(usage_events(valkey)) == 3


def cpu_s(client: redis.Redis) -> float:
    """What the server's main thread has used, which does not grow while others have the processor."""
    used = client.info("cpu")
    return float(used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"])


def cpu_us_per_round(client: redis.Redis, name: str, rounds: int = 150) -> float:
    """Of reserve and settle in the cell as it is: full, with a line that grows and shrinks by one."""
    before = cpu_s(client)
    for n in range(rounds):
        holder = CellRequest(
            client=client, request_id=f"{name}-probe-{n}", tenant="probe", sequences=0, candidates=TWO
        )
        assert isinstance(holder.reserve(1), Reserved)
        waiting = CellRequest(
            client=client, request_id=f"{name}-wait-{n}", tenant="probe", wait_max=10**6, candidates=TWO
        )
        assert isinstance(waiting.reserve(1), Waiting)
        holder.settle(1)
        waiting.leave()
    return 1e6 * (cpu_s(client) - before) / rounds


@pytest.mark.parametrize("shape", ["requests of one tenant", "tenants"])
def test_a_step_costs_the_same_with_ten_and_with_ten_thousand_in_line(
    valkey: redis.Redis, gateway: Listener, shape: str
) -> None:
    set_room(valkey, {"i-1": (1, 1), "i-2": (1, 1)})
    for n in range(2):
        CellRequest(client=valkey, request_id=f"h{n}", tenant="h", candidates=TWO).reserve()
    for n in range(10):
        waits(valkey, f"w{n}", f"t{n}")
    few = cpu_us_per_round(valkey, "few")
    with valkey.pipeline(transaction=False) as crowd:
        for n in range(10, 10_000):
            tenant = f"t{n}" if shape == "tenants" else "crowd"
            one = CellRequest(client=valkey, request_id=f"w{n}", tenant=tenant, key_id=tenant, wait_max=10**6)
            crowd.execute_command(*one.reserve_command(1_000))  # type: ignore[no-untyped-call]
        crowd.execute()
    assert len(tenants_waiting(valkey)) == (10_000 if shape == "tenants" else 11)
    many = cpu_us_per_round(valkey, "many")
    assert many < FACTOR * few


def test_no_more_requests_are_preempted_than_free_the_sequences_that_are_to_go(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (16, 16)})
    for name in ("f1", "f2", "f3"):
        CellRequest(client=valkey, request_id=name, asked=Tier.FLEX, sequences=4).reserve()
    valkey.hset(redis_keys.room(CELL), "g:i-1", 3)
    plan_anew(valkey)
    assert len(gateway.woken()) == 1


def test_what_has_no_sequence_is_not_preempted(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (16, 16)})
    CellRequest(client=valkey, request_id="f1", asked=Tier.FLEX).reserve()
    CellRequest(client=valkey, request_id="f0", asked=Tier.FLEX, sequences=0).reserve()
    valkey.hset(redis_keys.room(CELL), "g:i-1", 2)
    plan_anew(valkey)
    assert gateway.woken() == ["!f1"]


def test_who_leaves_with_a_place_says_when_the_next_prompt_may_start_there(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (1, 1)})
    holder = CellRequest(client=valkey, request_id="holder", tenant="holder")
    holder.reserve()
    granted, behind = waits(valkey, "granted"), waits(valkey, "behind")
    # Two seconds of reading are before whoever comes.
    valkey.hset(redis_keys.room(CELL), "w:i-1", 1_000)
    now_s, now_us = valkey.time()
    valkey.hset(redis_keys.flight(CELL), mapping={"pl:i-1": 0, "pt:i-1": int(now_s * 1e6 + now_us)})
    holder.settle()
    assert gateway.woken() == ["granted"]
    valkey.hset(redis_keys.flight(CELL), "pl:i-1", 2_000)
    left = granted.leave()
    assert left.dropped
    assert 0 < left.pace_ms <= 2_000
    assert state_of(valkey, behind.request_id) == "waiting"
