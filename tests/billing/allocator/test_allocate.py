"""Rounds of the allocator on real stores: the numbers that the scripts then decide by."""

import json

import pytest
import redis
from sqlalchemy import update

from billing.allocator.supply import CalibrationInForce
from billing.catalogue import models
from billing.cell.replies import LimitReached, Reserved, Waiting
from billing.cell.scripts import Tier
from billing.schema.capacity import contract
from billing.wire import redis_keys
from tests.billing.allocator.cells import Ground, only
from tests.billing.cell.requests import CELL
from tests.billing.contracts.selling import POOL, T0, calibrate

SECOND = 1000
FAR_MS = 4_000_000_000_000


def test_each_machine_has_room_and_each_contract_its_numbers(ground: Ground) -> None:
    signed = ground.sign("acme", 500, overflow="spill", spill_mu_s=7_000)
    ground.sign("bolt", 100, overflow="queue")
    ground.allocator().allocate_once(T0)
    room = ground.room()
    # Contracts that nobody uses: all of it is lent, to flex at once, to on-demand what nobody has bought and
    # then more and more.
    assert {name: room[name] for name in room if name != "s"} == {
        "m:i-1": "16", "x:i-1": "16", "g:i-1": "0", "w:i-1": "1000000", "d:i-1": "12",
        "m:i-2": "16", "x:i-2": "16", "g:i-2": "0", "w:i-2": "1000000", "d:i-2": "12",
    }  # fmt: skip
    numbers = ground.contract("acme")
    assert (numbers["id"], numbers["rate"], numbers["burst"]) == (signed.contract_id, "500000", "500000")
    assert (numbers["of"], numbers["spill"], numbers["end"]) == (
        "spill",
        "7000",
        str(signed.effective_end_ms),
    )
    assert ground.contract("bolt")["spill"] == "-1"
    for key in (redis_keys.contract_bucket(CELL, ground.tenant("acme")), redis_keys.room(CELL)):
        assert 6 * 86_400_000 < ground.text.pttl(key) <= 7 * 86_400_000


def test_an_instance_of_another_pool_in_the_cell_is_neither_divided_nor_sold(ground: Ground) -> None:
    """One that pools, of a model that also generates: its requests take no slot of the others."""
    ground.register("pools", pool=f"{POOL}/pooling")
    signed = ground.sign("acme", 1_500)
    ground.text.hdel(redis_keys.INSTANCES, "i-2")
    ground.allocator().allocate_once(T0)
    done = only(ground.allocator().allocate_once(T0 + SECOND))
    assert {name[2:] for name in ground.room() if name != "s"} == {"i-1"}
    assert [share.instance for share in done.shares] == ["i-1"]
    (came,) = done.contracts
    assert (came.contract_id, came.missing_mu) == (signed.contract_id, 500_000)
    reply = ground.request("r", name="bolt", candidates=(("pools", "e"),)).reserve()
    assert isinstance(reply, Reserved)
    assert reply.grant.instance == "pools"


def test_what_the_scripts_count_is_left_alone(ground: Ground) -> None:
    ground.sign("acme", 500)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    key = redis_keys.contract_bucket(CELL, ground.tenant("acme"))
    theirs = {"u": "123", "t": "456", "sp": "7", "st": "8", "used": "9", "borrowed": "10", "refused": "11"}
    ground.text.hset(key, mapping=theirs)
    allocator.allocate_once(T0 + SECOND)
    numbers = ground.contract("acme")
    assert {name: numbers[name] for name in theirs} == theirs


def test_a_rate_follows_its_ramp(ground: Ground) -> None:
    ground.sign("acme", [(T0, 500), (T0 + 10 * SECOND, 800)])  # type: ignore[arg-type]
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    assert ground.contract("acme")["rate"] == "500000"
    allocator.allocate_once(T0 + 10 * SECOND)
    assert ground.contract("acme")["rate"] == "800000"


def test_without_a_calibration_nothing_is_bounded(ground: Ground) -> None:
    with ground.engine.begin() as connection:
        models.create(connection, models.ModelSpec(name="bare", context_tokens=4096))
    # It has no machine any more, and somebody who waits there.
    ground.text.zadd(redis_keys.waiting_tenants("bare", "o"), {ground.tenant("acme"): 1})
    ground.text.sadd(redis_keys.CELLS, "bare")
    ground.text.hset(redis_keys.room("bare"), mapping={"m:i-1": 3, "x:i-1": 3})
    ground.allocator().allocate_once(T0)
    assert list(ground.text.hgetall(redis_keys.room("bare"))) == ["s"]  # type: ignore[arg-type]


@pytest.mark.parametrize("later_id", ["cal_0", "cal_z"])
def test_a_later_calibration_holds_whatever_its_id(ground: Ground, later_id: str) -> None:
    """Ids are random: the later one may come before the earlier one."""
    allocator = ground.allocator()
    assert only(allocator.allocate_once(T0)).calibration == CalibrationInForce(1_000_000, 16, T0)
    with ground.engine.begin() as connection:
        calibrate(connection, 700, at_ms=T0 + 1, calibration_id=later_id)
    assert only(allocator.allocate_once(T0 + SECOND)).calibration == CalibrationInForce(700_000, 16, T0 + 1)


def test_machines_that_are_gone_or_drain_have_no_room(ground: Ground) -> None:
    allocator = ground.allocator()
    ground.register("i-3")
    allocator.allocate_once(T0)
    assert "m:i-3" in ground.room()
    ground.text.hdel(redis_keys.INSTANCES, "i-2")
    ground.register("i-3", status="draining")
    allocator.allocate_once(T0 + SECOND)
    assert sorted(name for name in ground.room() if name != "s") == [
        "d:i-1",
        "g:i-1",
        "m:i-1",
        "w:i-1",
        "x:i-1",
    ]


def test_a_machine_that_queues_has_less_room_and_the_next_allocator_knows(ground: Ground) -> None:
    for round_ in range(3):
        ground.register("i-1", waiting=5)
        # Each round is another process: what it must remember is in the cell.
        allocator = ground.allocator(f"a{round_}")
        allocator.allocate_once(T0 + round_ * SECOND)
        allocator.close()
    assert (ground.room()["m:i-1"], ground.room()["m:i-2"]) == ("12", "16")


def test_new_room_is_granted_at_once(ground: Ground) -> None:
    ground.text.hset(redis_keys.room(CELL), mapping={"m:i-1": 0, "x:i-1": 0})
    waiting = ground.request("r1", asked=Tier.ON_DEMAND, wait_max=5)
    assert isinstance(waiting.reserve(), Waiting)
    with ground.text.pubsub() as heard:
        heard.subscribe("taas:wake:gw-1")
        assert heard.get_message(timeout=5) is not None
        ground.allocator().allocate_once(T0)
        message = heard.get_message(timeout=5)
    assert message is not None
    assert message["data"] == "r1"
    assert isinstance(waiting.reserve(), Reserved)


def test_an_idle_owners_share_is_lent_and_is_its_own_within_two_seconds(ground: Ground) -> None:
    ground.sign("acme", 1000)
    allocator = ground.allocator()
    for second in range(60):
        allocator.allocate_once(T0 + second * SECOND)
    assert sum(int(ground.room()[f"m:{each}"]) for each in ("i-1", "i-2")) == 32
    # It comes back, and flex is everywhere.
    for number in range(30):
        flex = ground.request(
            f"f{number}", "bolt", asked=Tier.FLEX, candidates=((f"i-{number % 2 + 1}", "e"),)
        )
        assert isinstance(flex.reserve(), Reserved)
    for number in range(8):
        own = ground.request(f"o{number}", candidates=((f"i-{number % 2 + 1}", "e"),))
        assert isinstance(own.reserve(cost_mu=125_000), Reserved)
    done = only(allocator.allocate_once(T0 + 60 * SECOND))
    # Its half of the machines, whatever it has in flight yet, and the guard.
    assert [(share.held, share.room) for share in done.shares] == [(10, 6), (10, 6)]
    # 16 sequences a machine, 4 reserved, 15 flex: 5 are in the way of it and of its guard of two.
    assert done.preempt == {"i-1": 5, "i-2": 5}


def test_while_on_demand_waits_flex_is_preempted(ground: Ground) -> None:
    ground.text.hdel(redis_keys.INSTANCES, "i-2")
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    for number in range(16):
        class_ = Tier.FLEX if number < 6 else Tier.ON_DEMAND
        assert isinstance(ground.request(f"r{number}", "bolt", asked=class_).reserve(), Reserved)
    for number in range(3):
        waiting = ground.request(f"w{number}", "core", asked=Tier.ON_DEMAND, wait_max=5)
        assert isinstance(waiting.reserve(), Waiting)
    with ground.text.pubsub() as heard:
        heard.subscribe("taas:wake:gw-1")
        assert heard.get_message(timeout=5) is not None
        done = only(allocator.allocate_once(T0 + SECOND))
        told = [heard.get_message(timeout=5) for _ in range(3)]
    assert [(share.room, share.flex, share.preempt) for share in done.shares] == [(16, 3, 3)]
    assert done.on_demand_waits == 1
    assert sorted(message["data"][:2] for message in told if message) == ["!r"] * 3


def test_who_is_preempted_and_runs_on_is_signalled_again_and_counted(ground: Ground) -> None:
    """As after a lost message: in the third round after the first."""
    ground.text.hdel(redis_keys.INSTANCES, "i-2")
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    for number in range(16):
        assert isinstance(ground.request(f"f{number}", "bolt", asked=Tier.FLEX).reserve(), Reserved)
    waiting = ground.request("w", "core", asked=Tier.ON_DEMAND, wait_max=5)
    assert isinstance(waiting.reserve(), Waiting)
    with ground.text.pubsub() as hears:
        hears.subscribe("taas:wake:gw-1")
        assert hears.get_message(timeout=5) is not None
        rounds = []
        for second in range(1, 5):
            assert isinstance(waiting.reserve(), Waiting)
            rounds.append(only(allocator.allocate_once(T0 + second * SECOND)))
    (asked,) = {done.preempt["i-1"] for done in rounds}
    assert [done.preempt_repeats for done in rounds] == [0, 0, 0, asked]
    counted = ground.metrics.registry.get_sample_value(
        "taas_pool_preempt_repeats_total", {"pool": rounds[0].cell.pool}
    )
    assert counted == asked


def end(ground: Ground, contract_id: str, end_ms: int) -> None:
    with ground.engine.begin() as connection:
        connection.execute(
            update(contract)
            .where(contract.c.contract_id == contract_id)
            .values(effective_end_ms=end_ms, state="ended")
        )


def test_a_contract_that_ended_goes_once_nothing_of_it_is_open(ground: Ground) -> None:
    signed = ground.sign("acme", 500)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    own = ground.request("r1")
    assert isinstance(own.reserve(cost_mu=5_000), Reserved)
    end(ground, signed.contract_id, T0 + SECOND)
    allocator.allocate_once(T0 + 2 * SECOND)
    numbers = ground.contract("acme")
    assert (numbers["rate"], numbers["end"]) == ("0", str(T0 + SECOND))
    own.settle(cost_mu=9_000)
    allocator.allocate_once(T0 + 3 * SECOND)
    assert ground.contract("acme") == {}
    row = ground.minutes(signed.contract_id)[0]
    assert (row.assigned_mu, row.used_mu) == (500_000, 9_000)
    allocator.allocate_once(T0 + 4 * SECOND)
    assert ground.contract("acme") == {}


def test_one_contract_follows_another_at_once(ground: Ground) -> None:
    first = ground.sign("acme", 500, until_ms=T0 + 10 * SECOND)
    second = ground.sign("acme", 200, from_ms=T0 + 10 * SECOND)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    ground.use("acme", 1_000)
    allocator.allocate_once(T0 + 10 * SECOND)
    ground.use("acme", 300)
    allocator.allocate_once(T0 + 12 * SECOND)
    assert ground.contract("acme")["id"] == second.contract_id
    assert (
        ground.minutes(first.contract_id)[0].assigned_mu,
        ground.minutes(first.contract_id)[0].used_mu,
    ) == (
        5_000_000,
        1_000,
    )
    assert (
        ground.minutes(second.contract_id)[0].assigned_mu,
        ground.minutes(second.contract_id)[0].used_mu,
    ) == (
        400_000,
        300,
    )


def test_a_fault_in_one_cell_does_not_stop_the_others(ground: Ground, raw_redis: redis.Redis) -> None:
    with ground.engine.begin() as connection:
        models.create(connection, models.ModelSpec(name="a-broken-one", context_tokens=4096))
    raw_redis.set(redis_keys.room("a-broken-one"), "not a hash")
    raw_redis.zadd(redis_keys.open_requests("a-broken-one"), {"r": 1})
    raw_redis.sadd(redis_keys.CELLS, "a-broken-one")
    allocator = ground.allocator()
    for second in range(2):
        assert only(allocator.allocate_once(T0 + second * SECOND)).cell.cell == CELL
    working = ground.metrics.registry.get_sample_value
    assert working("taas_allocator_working", {"cell": "a-broken-one"}) == 0
    assert working("taas_allocator_working", {"cell": CELL}) == 1


def test_the_names_are_those_that_the_scripts_derive(ground: Ground) -> None:
    """What Python writes is what a script reads, and the other way round."""
    tenant = ground.tenant("acme")
    ground.text.hset(redis_keys.room(CELL), mapping={"m:i-1": 1, "x:i-1": 0})
    ground.text.hset(
        redis_keys.contract_bucket(CELL, tenant),
        mapping={"id": "con_1", "rate": 1000, "burst": 1000, "of": "reject", "spill": -1, "end": FAR_MS},
    )
    own = ground.request("r1").reserve(cost_mu=9000)
    assert isinstance(own, Reserved)
    assert own.grant.contract == "con_1"
    assert isinstance(ground.request("r2").reserve(), LimitReached)
    assert isinstance(ground.request("r3", asked=Tier.FLEX, wait_max=1).reserve(), Waiting)
    assert ground.text.zrange(redis_keys.waiting_tenants(CELL, "f"), 0, -1) == [tenant]
    assert ground.text.zrange(redis_keys.waiting_requests(CELL, "f", tenant), 0, -1) == ["r3"]
    flight = ground.text.hgetall(redis_keys.flight(CELL))
    assert isinstance(flight, dict)
    assert flight["r:i-1"] == "1"
    assert json.loads(json.dumps(ground.contract("acme")["refused"])) == "1"
