"""Promises of a reclaim in SQL and Redis: refused before it breaks a contract, carried out in steps that
are all in the record, and undone.
"""

import json

import pytest
from sqlalchemy.exc import DBAPIError

from billing.allocator.allocator import Allocator
from billing.catalogue import pools
from billing.cell.scripts import Tier
from billing.contracts.clock import advance
from billing.contracts.commitments import change_pool, read_for_sale
from billing.contracts.quote import quote
from billing.fleet.registered import read_registered
from billing.metrics import BillingMetrics
from billing.moments import utc
from billing.reclaims import orders
from billing.reclaims.clear import SETTLE_MS
from billing.reclaims.cuts import rates_in_force
from billing.reclaims.plan import DRAIN_LEAD_MS
from billing.reclaims.store import Reclaim
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.capacity import pool_past
from billing.wire import redis_keys
from tests.billing.contracts.selling import DAY, POOL, T0, UNIT
from tests.billing.reclaims.conftest import MINUTE, Ground


def test_a_reclaim_that_would_break_a_contract_is_refused_with_when_and_how_much(ground: Ground) -> None:
    contract = ground.sign("acme", 1500)
    with pytest.raises(Conflict) as refused:
        ground.order(T0, by_ms=T0 + DAY)
    assert refused.value.code == "breaks_contracts"
    assert (
        f"from {utc(T0 + DAY)} until {utc(T0 + 100 * DAY)} by 500 units per second" in refused.value.message
    )
    plan = ground.plan(T0, by_ms=T0 + DAY)
    assert plan.refusal == refused.value.message
    assert [held.contract_id for held in plan.holding] == [contract.contract_id]
    with ground.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from reclaim").scalar_one() == 0


def test_what_drains_already_is_not_sold_once_more_until_its_deadline(ground: Ground) -> None:
    made = ground.order(T0, by_ms=T0 + 5 * MINUTE)
    assert (made.state, made.by_ms) == ("draining", T0 + 5 * MINUTE)
    with ground.engine.begin() as connection:
        (away,) = quote(read_for_sale(connection, POOL, T0 + MINUTE), T0 + MINUTE, made.by_ms).free
        assert away.value == 1000 * UNIT
    with pytest.raises(Conflict, match="by 500 units per second"):
        ground.sign("acme", 1500, until_ms=T0 + 4 * MINUTE)
    ground.sign("acme", 1000, until_ms=T0 + 4 * MINUTE)
    with ground.engine.begin() as connection, pytest.raises(Conflict, match="by 500 units per second"):
        change_pool(connection, POOL, now_ms=T0 + MINUTE, headroom_permille=500)
    ground.release(made, T0 + MINUTE)
    assert ground.sign("bolt", 1000).state == "signed"


def test_a_second_reclaim_leaves_what_is_signed_while_the_first_drains(ground: Ground) -> None:
    ends_ms = ground.sign("acme", 1000, until_ms=T0 + 5 * MINUTE).effective_end_ms
    assert ground.order(T0, by_ms=T0 + 9 * MINUTE).state == "draining"
    assert ground.plan(T0, by_ms=T0 + 8 * MINUTE).drain_from_ms == ends_ms
    second = ground.order(T0, by_ms=T0 + 8 * MINUTE)
    ground.step(ends_ms - 1)
    assert ground.now(second).state == "planned"
    ground.step(ends_ms)
    assert ground.now(second).state == "draining"


def test_a_contract_whose_notice_has_run_out_by_then_does_not_count(ground: Ground) -> None:
    contract = ground.give_notice(ground.sign("acme", 1500), "operator", T0)
    end_ms = contract.effective_end_ms
    assert end_ms == T0 + 30 * DAY
    with pytest.raises(Conflict, match="by 500 units"):
        ground.order(T0, by_ms=end_ms - 1)
    plan = ground.plan(T0, by_ms=end_ms)
    assert [held.contract_id for held in plan.run_out] == [contract.contract_id]
    # Until then all that is signed is there: the machine drains only when the contract has ended.
    assert plan.drain_from_ms == end_ms
    made = ground.order(T0, by_ms=end_ms)
    ground.step(end_ms - 1)
    assert (ground.now(made).state, ground.drained()) == ("planned", set())


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"instances": 0}, Invalid, "instances"),
        ({"instances": 3}, Conflict, "instances"),
        ({"by_ms": T0 - 6 * MINUTE}, Invalid, "by"),
    ],
)
def test_what_cannot_be_is_refused(ground: Ground, fields: dict, error: type, param: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(error) as refused:
        ground.order(T0, **fields)
    assert refused.value.param == param


def test_two_reclaims_do_not_take_the_same_machine(ground: Ground) -> None:
    first = ground.order(T0, by_ms=T0 + MINUTE)
    second = ground.order(T0, by_ms=T0 + MINUTE)
    assert {*first.chosen, *second.chosen} == {"a", "b"}
    with pytest.raises(Conflict, match="has 2 machines, and from then on 0 of them"):
        ground.order(T0, by_ms=T0 + MINUTE)


def test_it_drains_stops_and_is_done_with_each_step_in_the_record(ground: Ground) -> None:
    ground.sign("acme", 500)
    ground.register("a", running=2)
    for number, (asked, instance) in enumerate([(Tier.FLEX, "a"), (Tier.ON_DEMAND, "b"), (Tier.FLEX, "b")]):
        assert ground.request(f"r{number}", instance, "bolt", asked=asked).reserve()
    by_ms = T0 + DRAIN_LEAD_MS + DAY
    made = ground.order(T0, by_ms=by_ms)
    assert (made.state, made.chosen, ground.drained()) == ("planned", (), set())
    ground.step(by_ms - DRAIN_LEAD_MS - 1)
    assert ground.now(made).state == "planned"
    # Chosen as loaded then: by now `a` has more that would be cut.
    for number in (3, 4):
        assert ground.request(f"r{number}", "a", "bolt", asked=Tier.ON_DEMAND).reserve()
    ground.step(by_ms - DRAIN_LEAD_MS)
    assert (ground.now(made).state, ground.now(made).chosen) == ("draining", ("b",))
    order = json.loads(ground.text.hget(redis_keys.DRAINED, "b") or "")
    assert order == {"use": "research", "by_ms": by_ms, "reclaim": made.reclaim_id}
    assert {entry.instance: entry.status for entry in read_registered(ground.raw)} == {
        "a": "ready",
        "b": "draining",
    }
    ground.step(by_ms - 1)
    assert ground.stops() == []
    ground.step(by_ms)
    # Flex is preempted before on-demand.
    assert ground.stops() == ["r2", "r1"]
    ground.step(by_ms + 1000)
    assert ground.stops() == ["r2", "r1", "r2", "r1"]
    for number, asked in ((1, Tier.ON_DEMAND), (2, Tier.FLEX)):
        ground.request(f"r{number}", "b", "bolt", asked=asked).settle()
    ground.step(by_ms + 2000)
    assert ground.now(made).state == "done"
    assert ground.changes(made) == ["planned", "draining", "stopped", "done"]
    released = ground.release(made, by_ms + DAY)
    assert (released.state, released.released_ms, ground.drained()) == ("released", by_ms + DAY, set())
    with pytest.raises(Conflict, match="released already"):
        ground.release(made, by_ms + DAY)


def test_it_is_done_only_when_gateways_have_learned_that_it_drains(ground: Ground) -> None:
    made = ground.order(T0, by_ms=T0)
    assert made.state == "draining"
    ground.step(T0 + SETTLE_MS - 1)
    assert ground.now(made).state == "draining"
    assert ground.request("late", *made.chosen, "bolt").reserve()
    ground.step(T0 + SETTLE_MS)
    assert (ground.now(made).state, ground.stops()) == ("draining", ["late"])


def test_a_reclaim_that_has_not_begun_is_cancelled_by_release(ground: Ground) -> None:
    made = ground.order(T0, by_ms=T0 + DAY)
    assert ground.release(made, T0).state == "cancelled"
    ground.step(T0 + 2 * DAY)
    assert (ground.now(made).state, ground.changes(made)) == ("cancelled", ["planned", "cancelled"])
    with pytest.raises(NotFound), ground.engine.begin() as connection:
        orders.release(connection, ground.raw, "rec_none", T0)


def test_a_redis_that_lost_everything_is_told_who_is_away(ground: Ground) -> None:
    made = ground.order(T0, by_ms=T0)
    ground.text.delete(redis_keys.DRAINED, redis_keys.PROJECTION)
    ground.projector.deliver()
    assert ground.drained() == set(made.chosen)


def test_shortfalls_are_pro_rata_by_the_second_over_a_pause_and_never_twice(ground: Ground) -> None:
    acme, bolt = ground.sign("acme", 900), ground.sign("bolt", 301, until_ms=T0 + 10_000)
    made = ground.order(T0, by_ms=T0 + 2_500, breaks=True)
    assert made.breaks
    ground.step(T0 + 3_400)
    # Half a second of 201 units: of 1201 what is above 1000.
    first = {row[0]: row[1:] for row in ground.shortfalls()}
    assert {name: row[:2] for name, row in first.items()} == {
        acme.contract_id: (2, 900 * UNIT), bolt.contract_id: (2, 301 * UNIT),
    }  # fmt: skip
    assert sum(row[2] for row in first.values()) in {100_500, 100_501}
    # Billing is away while the second one ends, and its state is told later.
    with ground.engine.begin() as connection:
        assert {each.state for each in advance(connection, T0 + 60_000)} == {"active", "ended"}
    ground.step(T0 + 60_000)
    rows = ground.shortfalls()
    assert {row[1] for row in rows} == set(range(2, 10))
    for second in range(3, 10):
        cuts = [row[3] for row in rows if row[1] == second]
        assert (len(cuts), sum(cuts)) == (2, 201 * UNIT)
    ground.step(T0 + 60_000)
    assert ground.shortfalls() == rows


def test_a_pause_is_filled_in_by_what_the_pool_was_then(ground: Ground) -> None:
    contract = ground.sign("acme", 1500)
    with ground.engine.begin() as connection:
        change_pool(connection, POOL, now_ms=T0 - 1, set_aside_mu_s=100 * UNIT, headroom_permille=100)
    ground.order(T0, by_ms=T0, breaks=True)
    with ground.engine.begin() as connection:
        # Billing is away for ten seconds, in which the operator keeps less and less for itself, and finds
        # another machine.
        change_pool(connection, POOL, now_ms=T0 + 1_000, set_aside_mu_s=0)
        change_pool(connection, POOL, now_ms=T0 + 2_500, headroom_permille=0)
        change_pool(connection, POOL, now_ms=T0 + 4_000, instances=3)
        # A change that changes nothing leaves no trace, and one that waited for its turn none in the past.
        change_pool(connection, POOL, now_ms=T0 + 5_000, headroom_permille=0)
        change_pool(connection, POOL, now_ms=T0 + 3_000, instances=9)
        found = pools.past(connection, POOL)
    assert [(until_ms - T0, was.instances, was.headroom_permille, was.set_aside_mu_s) for until_ms,
    was in found] == [
        (-1, 2, 0, 0), (1_000, 2, 100, 100 * UNIT), (2_500, 2, 100, 0), (4_000, 2, 0, 0), (4_000, 3, 0, 0),
    ]  # fmt: skip
    ground.step(T0 + 10_000)
    assert ground.shortfalls() == [
        (contract.contract_id, second, 1500 * UNIT, cut * UNIT)
        for second, cut in ((0, 700), (1, 600), (2, 550), (3, 500))
    ]


def test_what_a_pool_was_is_never_rewritten(ground: Ground) -> None:
    with ground.engine.begin() as connection:
        change_pool(connection, POOL, now_ms=T0, instances=3)
    for statement in (pool_past.update().values(instances=0), pool_past.delete()):
        with pytest.raises(DBAPIError, match="append"), ground.engine.begin() as connection:
            connection.execute(statement)


def test_a_cut_ends_with_the_release_to_the_millisecond(ground: Ground) -> None:
    contract = ground.sign("acme", 1500)
    made = ground.order(T0, by_ms=T0, breaks=True)
    ground.release(made, T0 + 2_250)
    assert ground.shortfalls() == [
        (contract.contract_id, 0, 1500 * UNIT, 500 * UNIT),
        (contract.contract_id, 1, 1500 * UNIT, 500 * UNIT),
        (contract.contract_id, 2, 375 * UNIT, 125 * UNIT),
    ]
    ground.step(T0 + 10_000)
    assert len(ground.shortfalls()) == 3


def test_a_long_pause_is_filled_in_piece_by_piece(ground: Ground) -> None:
    ground.sign("acme", 1500)
    ground.order(T0, by_ms=T0, breaks=True)
    assert ground.step(T0 + 5_000_000) is True
    assert len(ground.shortfalls()) == 3_600
    assert ground.step(T0 + 5_000_000) is False
    assert [row[1] for row in ground.shortfalls()] == list(range(5_000))


def test_the_allocator_writes_what_is_left_of_cut_contracts(ground: Ground) -> None:
    ground.sign("acme", 900)
    ground.sign("bolt", 600)
    allocator = Allocator(
        ground.engine, ground.raw, BillingMetrics(), owner="a", rates_in_force=rates_in_force
    )

    def rates(now_ms: int) -> list[int]:
        allocator.allocate_once(now_ms)
        keys = [redis_keys.contract_bucket(POOL, ground.shop.tenants[name]) for name in ("acme", "bolt")]
        return [int(ground.text.hget(key, "rate") or 0) for key in keys]

    made = ground.order(T0, by_ms=T0 + 5_000, breaks=True)
    assert rates(T0 + 4_999) == [900 * UNIT, 600 * UNIT]
    assert rates(T0 + 5_000) == [600 * UNIT, 400 * UNIT]
    ground.release(made, T0 + 8_000)
    assert rates(T0 + 8_000) == [900 * UNIT, 600 * UNIT]


def test_one_that_drains_can_be_called_off_until_its_deadline(ground: Ground) -> None:
    def cancel(reclaim: Reclaim, now_ms: int) -> Reclaim:
        with ground.engine.begin() as connection:
            cancelled = orders.cancel(connection, ground.raw, reclaim.reclaim_id, now_ms)
        ground.projector.deliver()
        return cancelled

    first, second = ground.order(T0, by_ms=T0 + MINUTE), ground.order(T0, by_ms=T0 + MINUTE)
    assert ground.drained() == {"a", "b"}
    assert cancel(first, T0 + MINUTE - 1).state == "cancelled"
    assert ground.drained() == {*second.chosen}
    with pytest.raises(Conflict, match="has passed: release it"):
        cancel(second, T0 + MINUTE)
    with pytest.raises(Conflict, match="cancelled already"):
        cancel(first, T0 + MINUTE - 1)
    # What was called off takes nothing any more.
    assert ground.order(T0, by_ms=T0 + MINUTE).chosen == first.chosen
