"""Contracts as leaky buckets: what a tenant gets over time, what it owes, and where its requests go once
it has had its rate.
"""

import random
from typing import Any

import pytest
import redis

from billing.cell.replies import (
    LimitReached,
    NoContract,
    NoRight,
    Reserved,
    ReserveReply,
    Waiting,
    WaitingForContract,
)
from billing.cell.scripts import Tier
from billing.wire import redis_keys
from billing.wire.limits import LimitKind, Limits
from billing.wire.tokens import Tokens
from tests.billing.cell.plan import (
    Listener,
    age_contract,
    contract_field,
    flight,
    queue,
    set_room,
    sign,
    tenants_waiting,
    virtual,
)
from tests.billing.cell.requests import CELL, CellRequest, Drained, limits_of

RATE = 1_000_000


def ask(client: redis.Redis, request_id: str, cost_mu: int = 0, asked: Tier = Tier.AUTO) -> ReserveReply:
    return CellRequest(client=client, request_id=request_id, asked=asked).reserve(cost_mu)


def how(reply: ReserveReply) -> tuple[str, str]:
    """Class and why of an admission."""
    assert isinstance(reply, Reserved)
    return reply.grant.class_, reply.grant.why


def refusal(reply: ReserveReply) -> int | None:
    """The time to come back, of a refusal by the contract."""
    assert isinstance(reply, LimitReached)
    assert reply.limit is LimitKind.CONTRACT
    return reply.retry_after_ms


def open_past(client: redis.Redis, level_mu: int, overflow: str, spill_mu_s: int = -1) -> None:
    """A contract that one open request has filled up to this level."""
    sign(client, "acme", RATE, overflow, spill_mu_s=spill_mu_s)
    assert how(ask(client, "first", level_mu)) == ("reserved", "within_contract")


@pytest.mark.parametrize(
    "true_up", [(0.0, 0.0), (0.2, 3.0)], ids=["exact", "settled otherwise than reserved"]
)
def test_three_times_the_contract_gets_its_rate_and_no_more_than_a_burst_beside(
    valkey: redis.Redis, true_up: tuple[float, float]
) -> None:
    sign(valkey, "acme", RATE)
    chance, seconds, greatest = random.Random(7), 60, RATE // 10
    began, work_mu, offered_mu, number = valkey.time(), 0, 0, 0
    for _ in range(seconds * 2):
        due_mu = 0
        while due_mu < 3 * RATE // 2:
            cost_mu = chance.randint(RATE // 50, RATE // 10)
            used_mu = int(cost_mu * chance.uniform(*true_up)) if any(true_up) else cost_mu
            greatest = max(greatest, used_mu)
            due_mu += used_mu
            number += 1
            request = CellRequest(client=valkey, request_id=f"r{number}")
            if isinstance(request.reserve(cost_mu), Reserved):
                request.settle(used_mu)
                work_mu += used_mu
        offered_mu += due_mu
        age_contract(valkey, "acme", 0.5)
    ended = valkey.time()
    passed = seconds + ended[0] - began[0] + (ended[1] - began[1]) / 1e6
    assert offered_mu >= 3 * RATE * seconds
    # A burst at the start; the last step has drained and was not asked for; one request may pass the burst as
    # debt.
    assert RATE * (seconds - 1) <= work_mu <= RATE * (passed + 1) + greatest
    assert contract_field(valkey, "acme", "used") == work_mu
    assert contract_field(valkey, "acme", "refused") > 0


def test_debt_delays_the_next_by_exactly_what_it_takes_to_drain(valkey: redis.Redis) -> None:
    left_ms = Drained(1)
    sign(valkey, "acme", RATE)
    request = CellRequest(client=valkey, request_id="long")
    request.reserve(1_000)
    request.settle(10 * RATE)
    after_ms = refusal(ask(valkey, "next")) or 0
    assert after_ms == left_ms(9_000)
    age_contract(valkey, "acme", after_ms / 1000 - 0.5)
    sooner_ms = refusal(ask(valkey, "next"))
    assert sooner_ms is not None
    assert 0 < sooner_ms <= 500
    age_contract(valkey, "acme", sooner_ms / 1000)
    assert how(ask(valkey, "next")) == ("reserved", "within_contract")


def test_output_is_charged_as_it_streams_and_a_settle_gives_back(valkey: redis.Redis) -> None:
    left_ms, level = Drained(1), Drained(RATE / 1000)
    sign(valkey, "acme", RATE)
    request = CellRequest(client=valkey, request_id="r")
    request.reserve(100_000)
    request.checkpoint(Tokens(5, 0, 100), 400_000)
    assert contract_field(valkey, "acme", "u") == level(400_000)
    request.checkpoint(Tokens(5, 0, 300), 1_300_000)
    assert contract_field(valkey, "acme", "used") == 1_300_000
    assert refusal(ask(valkey, "next")) == left_ms(300)
    request.settle(200_000)
    assert contract_field(valkey, "acme", "used") == 200_000
    assert how(ask(valkey, "next")) == ("reserved", "within_contract")


def test_a_reply_says_the_levels_of_the_contract(valkey: redis.Redis) -> None:
    level = Drained(RATE / 1000)
    open_past(valkey, 300_000, "reject")
    reply = ask(valkey, "r", 100_000)
    assert isinstance(reply, Reserved)
    grant = reply.grant
    assert grant.contract == "c-1"
    assert grant.rate_mu_s == RATE
    assert grant.level_before_mu == level(300_000)
    assert grant.level_after_mu == grant.level_before_mu + 100_000


def test_an_ended_contract_takes_nothing(valkey: redis.Redis) -> None:
    sign(valkey, "acme", RATE, ends_in_s=-2)
    assert how(ask(valkey, "a", 1_000)) == ("on_demand", "room")
    assert isinstance(ask(valkey, "b", asked=Tier.RESERVED), NoContract)
    assert isinstance(CellRequest(client=valkey, request_id="c", on_demand=False).reserve(), NoRight)
    assert contract_field(valkey, "acme", "used") == contract_field(valkey, "acme", "u") == 0


@pytest.mark.parametrize("overflow", ["reject", "queue"])
def test_a_rate_of_nothing_refuses_for_good(valkey: redis.Redis, overflow: str) -> None:
    sign(valkey, "acme", 0, overflow)
    assert refusal(CellRequest(client=valkey, request_id="r", wait_max=5).reserve(1_000)) is None


def test_a_rate_of_nothing_spills(valkey: redis.Redis) -> None:
    sign(valkey, "acme", 0, "spill")
    assert how(ask(valkey, "r")) == ("on_demand", "spilled")


def test_a_contract_that_queues_says_when_it_will_have_drained(valkey: redis.Redis) -> None:
    left_ms = Drained(1)
    open_past(valkey, 3 * RATE, "queue")
    late = CellRequest(client=valkey, request_id="late", wait_max=1)
    reply = late.reserve(1_000)
    assert isinstance(reply, WaitingForContract)
    assert (reply.after_ms, reply.before) == (left_ms(2_000), 0)
    assert tenants_waiting(valkey) == {}
    assert flight(valkey) == {"r:i-1": 1}
    assert contract_field(valkey, "acme", "refused") == 0
    age_contract(valkey, "acme", reply.after_ms / 1000)
    assert how(late.reserve(1_000)) == ("reserved", "waited")
    assert queue(valkey, "acme", "r") == []


def test_a_contract_that_queues_refuses_who_will_not_wait(valkey: redis.Redis) -> None:
    left_ms = Drained(1)
    open_past(valkey, 3 * RATE, "queue")
    assert refusal(ask(valkey, "hasty")) == left_ms(2_000)
    assert contract_field(valkey, "acme", "refused") == 1
    insists = CellRequest(client=valkey, request_id="insists", wait_max=5, asked=Tier.RESERVED)
    assert isinstance(insists.reserve(), WaitingForContract)


def test_a_spill_without_cap_goes_on_as_on_demand(valkey: redis.Redis) -> None:
    open_past(valkey, 4 * RATE, "spill")
    for n in range(20):
        assert how(ask(valkey, f"s{n}", RATE)) == ("on_demand", "spilled")
    assert contract_field(valkey, "acme", "borrowed") == 20 * RATE
    assert contract_field(valkey, "acme", "used") == 4 * RATE
    assert virtual(valkey, "acme") == 20 * RATE
    assert flight(valkey) == {"r:i-1": 1, "o:i-1": 20}


def test_a_spill_is_capped_at_its_own_rate(valkey: redis.Redis) -> None:
    open_past(valkey, 4 * RATE, "spill", RATE // 2)
    assert how(ask(valkey, "s1", RATE // 4)) == ("on_demand", "spilled")
    assert how(ask(valkey, "s2", RATE // 2)) == ("on_demand", "spilled")
    assert refusal(ask(valkey, "s3")) is not None
    age_contract(valkey, "acme", 0.6)
    assert how(ask(valkey, "s3")) == ("on_demand", "spilled")


def test_fault_40_what_spilled_drains_after_redis_clock_went_back(valkey: redis.Redis) -> None:
    open_past(valkey, 40 * RATE, "spill", RATE // 2)
    assert how(ask(valkey, "s1", RATE)) == ("on_demand", "spilled")
    age_contract(valkey, "acme", -3_600)
    assert refusal(ask(valkey, "s2")) is not None
    age_contract(valkey, "acme", 3)
    assert how(ask(valkey, "s3")) == ("on_demand", "spilled")


def test_what_spilled_is_trued_up_where_it_was_charged(valkey: redis.Redis) -> None:
    open_past(valkey, 4 * RATE, "spill", RATE)
    spilled = CellRequest(client=valkey, request_id="s")
    spilled.reserve(RATE)
    spilled.checkpoint(Tokens(5, 0, 9), 2 * RATE)
    spilled.settle(RATE // 10)
    assert contract_field(valkey, "acme", "borrowed") == virtual(valkey, "acme") == RATE // 10
    assert contract_field(valkey, "acme", "used") == 4 * RATE
    assert how(ask(valkey, "s2")) == ("on_demand", "spilled")


def test_who_insists_on_reserved_never_spills(valkey: redis.Redis) -> None:
    left_ms = Drained(1)
    open_past(valkey, 2 * RATE, "spill")
    assert refusal(ask(valkey, "r", asked=Tier.RESERVED)) == left_ms(1_000)
    assert isinstance(
        CellRequest(client=valkey, request_id="x", tenant="other", asked=Tier.RESERVED).reserve(),
        NoContract,
    )


@pytest.mark.parametrize("asked", [Tier.ON_DEMAND, Tier.FLEX])
def test_what_a_tenant_asks_for_beside_its_contract_is_not_charged_to_it(
    valkey: redis.Redis, asked: Tier
) -> None:
    sign(valkey, "acme", RATE, "spill")
    request = CellRequest(client=valkey, request_id="r", asked=asked)
    assert how(request.reserve(5 * RATE)) == (asked.value, "room")
    request.checkpoint(Tokens(5, 0, 9), 6 * RATE)
    request.settle(7 * RATE)
    for name in ("u", "used", "sp", "borrowed", "refused"):
        assert contract_field(valkey, "acme", name) == 0
    assert virtual(valkey, "acme") == 7 * RATE


def test_a_tenant_without_on_demand_is_served_by_its_contract_only(valkey: redis.Redis) -> None:
    sign(valkey, "acme", RATE, "reject")
    assert how(CellRequest(client=valkey, request_id="a", on_demand=False).reserve(2 * RATE)) == (
        "reserved",
        "within_contract",
    )
    assert isinstance(
        CellRequest(client=valkey, request_id="b", on_demand=False, asked=Tier.ON_DEMAND).reserve(),
        NoRight,
    )
    assert isinstance(
        CellRequest(client=valkey, request_id="c", on_demand=False, asked=Tier.FLEX).reserve(),
        NoRight,
    )


def test_within_its_contract_nothing_makes_a_tenant_wait(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (1, 1)})
    for n in range(5):
        CellRequest(client=valkey, request_id=f"o{n}", tenant="crowd", wait_max=9).reserve(1_000)
        CellRequest(client=valkey, request_id=f"f{n}", tenant="crowd", wait_max=9, asked=Tier.FLEX).reserve(
            1_000
        )
    sign(valkey, "acme", RATE)
    assert how(ask(valkey, "mine", 1_000)) == ("reserved", "within_contract")
    assert flight(valkey) == {"o:i-1": 1, "r:i-1": 1}


def test_a_new_rate_keeps_the_level(valkey: redis.Redis) -> None:
    left_ms = Drained(1)
    open_past(valkey, 4 * RATE, "reject")
    sign(valkey, "acme", 2 * RATE)
    assert refusal(ask(valkey, "r")) == left_ms(1_000)


def test_a_refusal_by_the_contract_consumes_nothing_else(valkey: redis.Redis) -> None:
    open_past(valkey, 4 * RATE, "reject")
    refusal(ask(valkey, "r", 1_000))
    assert CellRequest(client=valkey, request_id="r").tenant_level("c") == 1
    assert flight(valkey) == {"r:i-1": 1}
    assert contract_field(valkey, "acme", "refused") == 1


def test_what_spilled_while_it_waited_is_trued_up_after_the_contract_ended(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (1, 1)})
    CellRequest(client=valkey, request_id="other", tenant="other").reserve()
    open_past(valkey, 4 * RATE, "spill")
    spilled = CellRequest(client=valkey, request_id="s", wait_max=1)
    assert isinstance(spilled.reserve(50_000), Waiting)
    CellRequest(client=valkey, request_id="other", tenant="other").settle()
    assert gateway.woken() == ["s"]
    sign(valkey, "acme", RATE, "spill", ends_in_s=-2)
    assert how(spilled.reserve(50_000)) == ("on_demand", "spilled")
    spilled.settle(20_000)
    assert contract_field(valkey, "acme", "borrowed") == 20_000


@pytest.mark.parametrize("whose", ["tenant_limits", "key_limits"])
def test_a_units_limit_does_not_count_what_is_reserved(valkey: redis.Redis, whose: str) -> None:
    sign(valkey, "acme", RATE)
    limits: dict[str, Any] = {whose: limits_of(units_mu=10_000)}
    reserved = CellRequest(client=valkey, request_id="r", **limits)
    assert how(reserved.reserve(20_000)) == ("reserved", "within_contract")
    reserved.checkpoint(Tokens(5, 0, 100), 40_000)
    reserved.settle(60_000)
    assert contract_field(valkey, "acme", "used") == 60_000
    assert reserved.tenant_level("u") == reserved.key_level("u") == 0
    beside = CellRequest(client=valkey, request_id="o", asked=Tier.ON_DEMAND, **limits).reserve(20_000)
    assert isinstance(beside, LimitReached)
    assert (beside.limit, beside.retry_after_ms) == (LimitKind.UNITS, None)


def test_what_spills_is_counted_by_a_units_limit(valkey: redis.Redis) -> None:
    open_past(valkey, 4 * RATE, "spill")
    limits = limits_of(units_mu=10_000)
    assert how(CellRequest(client=valkey, request_id="s1", tenant_limits=limits).reserve(8_000)) == (
        "on_demand",
        "spilled",
    )
    over = CellRequest(client=valkey, request_id="s2", tenant_limits=limits).reserve(8_000)
    assert isinstance(over, LimitReached)
    assert over.limit is LimitKind.UNITS
    # The contract had no room: what it says of limits is about what it would have taken.
    assert contract_field(valkey, "acme", "limited:units") == contract_field(valkey, "acme", "refused") == 0


@pytest.mark.parametrize(
    ("limits", "limit"), [(limits_of(requests=1), "requests"), (limits_of(concurrency=1), "concurrency")]
)
@pytest.mark.parametrize("whose", ["tenant_limits", "key_limits"])
def test_a_limit_that_refuses_what_the_contract_would_take_is_counted_with_its_cause(
    valkey: redis.Redis, limits: Limits, limit: str, whose: str
) -> None:
    sign(valkey, "acme", RATE)
    of: dict[str, Any] = {whose: limits}
    assert how(CellRequest(client=valkey, request_id="a", **of).reserve(1_000)) == (
        "reserved",
        "within_contract",
    )
    for n in range(2):
        refused = CellRequest(client=valkey, request_id=f"b{n}", **of).reserve(1_000)
        assert isinstance(refused, LimitReached)
        assert refused.limit == limit
    assert isinstance(
        CellRequest(client=valkey, request_id="c", asked=Tier.ON_DEMAND, **of).reserve(1_000),
        LimitReached,
    )
    assert contract_field(valkey, "acme", f"limited:{limit}") == 2
    assert contract_field(valkey, "acme", "refused") == 0


def test_a_burst_may_be_longer_than_a_second(valkey: redis.Redis) -> None:
    sign(valkey, "acme", RATE)
    valkey.hset(redis_keys.contract_bucket(CELL, "acme"), "burst", 10 * RATE)
    # The last one goes beyond it: it is admitted while any of the burst is left.
    for n in range(11):
        assert how(ask(valkey, f"r{n}", RATE)) == ("reserved", "within_contract")
    after_ms = refusal(ask(valkey, "late", RATE))
    assert after_ms is not None
    assert 0 < after_ms <= 1_000
