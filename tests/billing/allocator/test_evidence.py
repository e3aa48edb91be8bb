"""The evidence in SQL: what the scripts have counted, once, whoever allocates and whatever happens in
between.
"""

from dataclasses import replace
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, insert
from sqlalchemy.exc import DBAPIError

from billing.cell.replies import LimitReached, Reserved
from billing.contracts.rates import RatesByPool
from billing.schema.capacity import contract_minute, contract_shortfall
from billing.wire import redis_keys
from tests.billing.allocator.cells import MINUTE, Ground
from tests.billing.cell.requests import CELL
from tests.billing.contracts.selling import T0, take

SECOND = 1000


def figures(row: Any) -> tuple[int, ...]:
    return (row.assigned_mu, row.used_mu, row.lent_mu, row.borrowed_mu, row.refused, row.shortfall_mu)


def test_what_the_scripts_count_is_in_its_minute(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    own = ground.request("r1")
    assert isinstance(own.reserve(cost_mu=12_000), Reserved)
    assert isinstance(ground.request("r2").reserve(cost_mu=1_000), LimitReached)
    own.settle(cost_mu=20_000)
    allocator.allocate_once(T0 + 4 * SECOND)
    assert figures(ground.minutes(signed.contract_id)[0]) == (40_000, 20_000, 0, 0, 1, 0)
    value = ground.metrics.registry.get_sample_value
    labels = {"tenant": ground.tenant("acme"), "pool": "llama", "contract": signed.contract_id}
    assert value("taas_contract_assigned_units_per_second", labels) == 10
    assert value("taas_contract_used_units_total", labels) == 20
    assert value("taas_contract_refused_requests_total", labels) == 1
    assert value("taas_pool_capacity_units_per_second", {"pool": "llama"}) == 2000
    assert value("taas_pool_in_flight_sequences", {"pool": "llama", "class": "reserved"}) == 0


def test_room_by_class_adds_up_to_what_the_engines_are_trusted_with(ground: Ground) -> None:
    ground.sign("acme", 500)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    ground.use("acme", 400_000)
    allocator.allocate_once(T0 + SECOND)
    room = {
        class_: ground.metrics.registry.get_sample_value(
            "taas_pool_room_sequences", {"pool": "llama", "class": class_}
        )
        for class_ in ("reserved", "on_demand", "flex")
    }
    assert room["reserved"], room
    shares = allocator.allocate_once(T0 + 2 * SECOND)[0].shares
    assert sum(value or 0 for value in room.values()) == sum(share.sequences for share in shares)


def test_a_round_that_fails_after_its_books_are_written_is_counted(
    ground: Ground, raw_redis: redis.Redis
) -> None:
    signed = ground.sign("acme", 10)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    ground.use("acme", 700)
    raw_redis.zadd(redis_keys.open_requests(CELL), {"r": T0})
    raw_redis.set(redis_keys.reservation(CELL, "r"), "not a hash")
    with pytest.raises(redis.ResponseError):
        allocator.allocate_once(T0 + SECOND)
    raw_redis.delete(redis_keys.reservation(CELL, "r"))
    ground.use("acme", 300)
    allocator.allocate_once(T0 + 2 * SECOND)
    assert ground.minutes(signed.contract_id)[0].used_mu == 1_000
    labels = {"tenant": ground.tenant("acme"), "pool": "llama", "contract": signed.contract_id}
    assert ground.metrics.registry.get_sample_value("taas_contract_used_units_total", labels) == 1


def test_minutes_go_on_under_another_allocator_and_after_a_pause(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    for number, second in enumerate([0, 1, 2, 50, 70, 200]):
        allocator = ground.allocator(f"a{number}")
        if number:
            ground.use("acme", 1_000, borrowed=10)
        allocator.allocate_once(T0 + second * SECOND)
        allocator.close()
    rows = ground.minutes(signed.contract_id)
    assert sorted(rows) == [0, 1, 2, 3]
    assert [rows[each].assigned_mu for each in sorted(rows)] == [600_000, 600_000, 600_000, 200_000]
    assert sum(row.used_mu for row in rows.values()) == 5_000
    assert sum(row.borrowed_mu for row in rows.values()) == 50


def test_a_round_that_died_between_sql_and_redis_is_neither_lost_nor_doubled(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    ground.allocator().allocate_once(T0)
    ground.use("acme", 700)
    before = ground.text.dump(redis_keys.contract_bucket(CELL, ground.tenant("acme")))
    ground.forget_leases()
    ground.allocator("dies").allocate_once(T0 + 61 * SECOND)
    # As if it had not come to write to Redis.
    ground.text.restore(redis_keys.contract_bucket(CELL, ground.tenant("acme")), 0, before, replace=True)
    ground.use("acme", 300)
    ground.forget_leases()
    ground.allocator("next").allocate_once(T0 + 62 * SECOND)
    rows = ground.minutes(signed.contract_id)
    assert sum(row.used_mu for row in rows.values()) == 1_000
    assert sum(row.assigned_mu for row in rows.values()) == 62 * 10_000


def test_an_older_reading_does_not_undo_a_newer_one(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    key = redis_keys.contract_bucket(CELL, ground.tenant("acme"))
    old = str(ground.text.hget(key, "ev"))
    ground.use("acme", 600)
    allocator.allocate_once(T0 + 30 * SECOND)
    # Another allocator, that stood still, writes what it had read: from there the next round goes on.
    ground.text.hset(key, "ev", old)
    allocator.allocate_once(T0 + 20 * SECOND)
    assert ground.minutes(signed.contract_id)[0].assigned_mu == 300_000
    allocator.allocate_once(T0 + 40 * SECOND)
    assert figures(ground.minutes(signed.contract_id)[0])[:2] == (400_000, 600)


def test_after_redis_was_emptied_what_is_recorded_stays_and_what_comes_is_added(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    ground.use("acme", 600, refused=2)
    allocator.allocate_once(T0 + 10 * SECOND)
    ground.text.flushall()
    ground.register("i-1")
    allocator.allocate_once(T0 + 11 * SECOND)
    ground.use("acme", 50, refused=1)
    allocator.allocate_once(T0 + 12 * SECOND)
    # The second in which it was lost is not assigned: nobody knows when it went.
    assert figures(ground.minutes(signed.contract_id)[0]) == (110_000, 650, 0, 0, 3, 0)


def test_what_others_took_of_an_idle_owners_share_is_lent(ground: Ground) -> None:
    signed = ground.sign("acme", 1_500)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    # 500 units per second are nobody's, 1,500 the idle owner's; others do 1,200 in this second.
    ground.work(1_200_000)
    allocator.allocate_once(T0 + SECOND)
    assert figures(ground.minutes(signed.contract_id)[0]) == (1_500_000, 0, 700_000, 0, 0, 0)
    # The owner uses all of its own: whatever others did is not lent.
    ground.use("acme", 1_500_000)
    ground.work(900_000)
    allocator.allocate_once(T0 + 2 * SECOND)
    assert figures(ground.minutes(signed.contract_id)[0]) == (3_000_000, 1_500_000, 700_000, 0, 0, 0)


def test_what_was_cut_is_the_minutes_shortfall(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    allocator.allocate_once(T0 + SECOND)

    def cut(second: int, mu: int) -> None:
        with ground.engine.begin() as connection:
            connection.execute(
                insert(contract_shortfall).values(
                    contract_id=signed.contract_id, second_ms=T0 + second * SECOND, assigned_mu=10_000,
                    cut_mu=mu, reclaim_id=f"rec_{T0}_1",
                )
            )  # fmt: skip

    with ground.engine.begin() as connection:
        take(connection, 1, T0, breaks=True)
    cut(0, 4_000)
    cut(1, 3_000)
    allocator.allocate_once(T0 + 2 * SECOND)
    # What is recorded late comes to its own minute, after a pause as well.
    cut(59, 2_000)
    allocator.allocate_once(T0 + MINUTE + SECOND)
    rows = ground.minutes(signed.contract_id)
    assert (rows[0].shortfall_mu, rows[1].shortfall_mu) == (9_000, 0)
    cut(58, 1_000)
    allocator.allocate_once(T0 + 60 * MINUTE)
    assert ground.minutes(signed.contract_id)[0].shortfall_mu == 10_000
    labels = {"tenant": ground.tenant("acme"), "pool": "llama", "contract": signed.contract_id}
    assert ground.metrics.registry.get_sample_value("taas_contract_shortfall_units_total", labels) == 10


def test_what_ready_machines_cannot_do_is_missing_from_every_contract_in_proportion(ground: Ground) -> None:
    large, small = ground.sign("acme", 1_200), ground.sign("bolt", 300)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    allocator.allocate_once(T0 + SECOND)
    assert ground.minutes(large.contract_id)[0].shortfall_mu == 0
    # One machine of two does 1,000 units per second; 1,500 are signed. It is so from when it is seen until it
    # is seen not to be.
    ground.register("i-2", status="down")
    allocator.allocate_once(T0 + 2 * SECOND)
    allocator.allocate_once(T0 + 5 * SECOND)
    ground.register("i-2")
    allocator.allocate_once(T0 + 6 * SECOND)
    allocator.allocate_once(T0 + 9 * SECOND)
    for signed, missing_mu in ((large, 4 * 400_000), (small, 4 * 100_000)):
        (row,) = ground.minutes(signed.contract_id).values()
        assert (row.cut_mu, row.missing_mu, row.shortfall_mu) == (0, missing_mu, missing_mu)
    labels = {"tenant": ground.tenant("acme"), "pool": "llama", "contract": large.contract_id}
    for name in ("shortfall", "missing"):
        assert ground.metrics.registry.get_sample_value(f"taas_contract_{name}_units_total", labels) == 1_600


def test_what_a_reclaim_cuts_is_not_missing_as_well(ground: Ground) -> None:
    signed = ground.sign("acme", 1_600)

    def cut(_: Connection, signed: RatesByPool, now_ms: int) -> RatesByPool:
        return {pool: [replace(rate, mu_s=900_000) for rate in rates] for pool, rates in signed.items()}

    ground.register("i-2", status="draining")
    allocator = ground.allocator(rates_in_force=cut)
    allocator.allocate_once(T0)
    allocator.allocate_once(T0 + SECOND)
    assert ground.minutes(signed.contract_id)[0].missing_mu == 0


def test_a_contract_that_is_cut_has_less_to_use_and_is_still_assigned_what_was_signed(ground: Ground) -> None:
    signed = ground.sign("acme", 10)

    def halved(_: Connection, signed: RatesByPool, now_ms: int) -> RatesByPool:
        return {
            pool: [replace(rate, mu_s=rate.mu_s // 2) for rate in rates] for pool, rates in signed.items()
        }

    allocator = ground.allocator(rates_in_force=halved)
    allocator.allocate_once(T0)
    assert (ground.contract("acme")["rate"], ground.contract("acme")["burst"]) == ("5000", "5000")
    allocator.allocate_once(T0 + SECOND)
    assert ground.minutes(signed.contract_id)[0].assigned_mu == 10_000


def test_a_database_that_fails_leaves_the_evidence_for_the_next_round(ground: Ground) -> None:
    signed = ground.sign("acme", 10)
    allocator = ground.allocator()
    allocator.allocate_once(T0)
    ground.use("acme", 900)
    with ground.engine.begin() as connection:
        connection.exec_driver_sql("alter table contract_minute rename to gone")
    with pytest.raises(DBAPIError):
        allocator.allocate_once(T0 + 30 * SECOND)
    with ground.engine.begin() as connection:
        connection.exec_driver_sql("alter table gone rename to contract_minute")
    allocator.allocate_once(T0 + 40 * SECOND)
    assert figures(ground.minutes(signed.contract_id)[0])[:2] == (400_000, 900)
    with ground.engine.connect() as connection:
        assert connection.execute(contract_minute.select()).all()
