"""A provider's instance in a cell: it has the slots that its operator declared, and no capacity to sell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from billing.allocator import shares
from billing.allocator.shares import InFlight
from billing.cell.replies import Reserved, Waiting
from billing.fleet.registered import machines_of, read_registered
from billing.reclaims.occupancy import read_cells_ready, read_occupied
from billing.schema.catalogue import model
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry
from tests.billing.allocator.cells import Ground, only
from tests.billing.cell.requests import CELL
from tests.billing.contracts.selling import POOL, T0

PROVIDER = {"engine": "openai", "max_concurrency": 2}
THERE = (("p-1", "e"),)
UNMEASURED = "unmeasured"


@pytest.fixture
def provider(ground: Ground) -> Ground:
    ground.register("p-1", **PROVIDER)
    return ground


@pytest.fixture
def alone(provider: Ground) -> Ground:
    """In a pool of its own, where nothing was ever measured."""
    provider.text.hdel(redis_keys.INSTANCES, "i-1", "i-2")
    with provider.engine.begin() as connection:
        connection.execute(update(model).values(pool=UNMEASURED))
    provider.register("p-1", pool=UNMEASURED, **PROVIDER)
    return provider


@pytest.mark.parametrize("where", ["alone", "provider"])
def test_it_takes_as_many_requests_as_were_declared_and_the_next_one_waits(
    where: str, request: pytest.FixtureRequest
) -> None:
    ground: Ground = request.getfixturevalue(where)
    ground.allocator().allocate_once(T0)
    replies = [ground.request(f"r{n}", candidates=THERE, wait_max=5).reserve() for n in range(3)]
    assert [type(reply) for reply in replies] == [Reserved, Reserved, Waiting]
    ground.request("r0", candidates=THERE, wait_max=5).settle()
    ground.allocator().allocate_once(T0 + 1000)
    assert isinstance(ground.request("r2", candidates=THERE, wait_max=5).reserve(), Reserved)


def test_it_is_no_capacity_that_is_sold_or_lent(provider: Ground) -> None:
    signed = provider.sign("acme", 1_500)
    provider.text.hdel(redis_keys.INSTANCES, "i-2")
    provider.allocator().allocate_once(T0)
    done = only(provider.allocator().allocate_once(T0 + 1000))
    (came,) = done.contracts
    assert (came.contract_id, came.missing_mu) == (signed.contract_id, 500_000)
    room = provider.room()
    assert {name: room[name] for name in room if name.endswith(":p-1")} == {
        "m:p-1": "2", "d:p-1": "2", "x:p-1": "2", "g:p-1": "0", "w:p-1": "0",
    }  # fmt: skip
    page = provider.metrics.registry.get_sample_value("taas_pool_capacity_units_per_second", {"pool": POOL})
    assert page == 1000


def test_it_is_no_machine(provider: Ground) -> None:
    there = read_registered(provider.raw)
    assert [entry.instance for entry in there] == ["i-1", "i-2", "p-1"]
    assert machines_of(0, there, measured=False) == 2
    assert [each.instance for each in read_occupied(provider.raw, POOL, ())] == ["i-1", "i-2"]
    provider.text.hdel(redis_keys.INSTANCES, "i-1", "i-2")
    assert read_cells_ready(provider.raw, POOL) == frozenset()


def test_a_removed_one_leaves_no_slots_behind(alone: Ground) -> None:
    alone.allocator().allocate_once(T0)
    assert alone.room()["m:p-1"] == "2"
    alone.text.hdel(redis_keys.INSTANCES, "p-1")
    alone.register("p-2", pool=UNMEASURED, **PROVIDER)
    alone.allocator().allocate_once(T0 + 1000)
    assert {name for name in alone.room() if ":" in name and name.endswith("p-1")} == set()


def test_fault_35_nobody_is_admitted_before_it_has_its_slots_again(alone: Ground) -> None:
    alone.text.flushall()
    alone.allocator().allocate_once(T0)
    alone.register("p-1", pool=UNMEASURED, **PROVIDER)
    alone.text.sadd(redis_keys.CELLS, CELL)
    restorer = alone.restorer()
    restorer.restore_once(T0)
    assert not alone.text.exists(redis_keys.intact(CELL))
    alone.allocator().allocate_once(T0 + 1000)
    restorer.restore_once(T0 + 1000)
    assert alone.text.exists(redis_keys.intact(CELL))


def test_the_entry_says_its_slots() -> None:
    raw = b'{"instance":"p","model":"m","pool":"m","cell":"m","url":"u","epoch":"e","status":"ready",'
    entry = InstanceEntry.from_json(raw + b'"lease_until_ms":0,"engine":"openai","max_concurrency":7}')
    assert (entry.max_concurrency, entry.is_provider) == (7, True)
    assert InstanceEntry.from_json(entry.to_json()) == entry
    assert InstanceEntry.from_json(raw + b'"lease_until_ms":0}').max_concurrency is None


@given(slots=st.integers(1, 1000), flight=st.tuples(*[st.integers(0, 2000)] * 3))
def test_no_class_has_more_than_what_requests_within_contracts_leave(
    slots: int, flight: tuple[int, int, int]
) -> None:
    share = shares.declared("p", slots, InFlight(*flight))
    assert share.room == share.on_demand == share.flex == max(0, slots - flight[0])
    assert (share.held + share.room, share.preempt) == (slots, 0)
