"""Faults 34 and 40 for the allocator: whatever becomes of Redis, or of its clock, the last numbers hold,
it goes on by itself, and the evidence is whole.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from billing.cell.replies import LimitReached, Reserved
from billing.loop import Loop
from billing.wire import redis_keys
from billing.wire.limits import Limits
from tests.billing.allocator.cells import Ground, open_ground
from tests.billing.cell.requests import CELL, age_bucket
from tests.billing.contracts.selling import DAY, T0
from tests.examples import examples
from tests.fixtures.gateway import wait_until
from tests.fixtures.redis_faults import FAULTS, READABLE, Fault
from tests.fixtures.valkey import ValkeyProcess

SECOND = 1000
# Below the pause of one that is slow.
TIMEOUT_S = 0.3


@pytest.fixture
def ground(database: Engine, own_valkey: ValkeyProcess) -> Iterator[Ground]:
    with (
        redis.Redis(port=own_valkey.port, socket_timeout=TIMEOUT_S, retry=None) as raw,
        redis.Redis(port=own_valkey.port, decode_responses=True) as text,
    ):
        yield open_ground(database, raw, text)


@contextlib.contextmanager
def allocating(ground: Ground) -> Iterator[Callable[[], int]]:
    """The allocator's loop, faster than in the process, each round a second after the last; yields how
    many rounds have been begun.
    """
    allocator, stop, rounds = ground.allocator(), threading.Event(), itertools.count(1)
    begun = 0

    def step() -> bool:
        nonlocal begun
        begun = next(rounds)
        allocator.allocate_once(T0 + begun * SECOND)
        return False

    loop = threading.Thread(
        target=Loop("allocator", step, interval_ms=20, metrics=ground.metrics).run, args=(stop,)
    )
    loop.start()
    try:
        yield lambda: begun
    finally:
        stop.set()
        loop.join()


def degraded(ground: Ground) -> bool:
    return ground.metrics.registry.get_sample_value("taas_degraded", {"component": "allocator"}) == 1


def numbers(ground: Ground) -> dict[str, str]:
    """What the scripts decide by."""
    decided = {name: value for name, value in ground.room().items() if name != "s"}
    return decided | {name: ground.contract("acme")[name] for name in ("id", "rate", "burst", "of", "end")}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_34_the_last_numbers_hold_and_it_goes_on_by_itself(
    ground: Ground, own_valkey: ValkeyProcess, fault: Fault
) -> None:
    signed = ground.sign("acme", 10)
    with allocating(ground) as begun:
        wait_until(lambda: ground.contract("acme").get("rate") == "10000", "numbers")
        ground.use("acme", 700, borrowed=30, refused=2)
        with fault(own_valkey, ground.text):
            wait_until(lambda: degraded(ground), "word that it cannot work")
            before = numbers(ground) if fault in READABLE else {}
            ground.sign("bolt", 20)
            failed = begun()
            wait_until(lambda: begun() > failed, "another try")
            if fault in READABLE:
                assert numbers(ground) == before
                assert ground.contract("bolt") == {}
        wait_until(lambda: not degraded(ground), "word that it works again")
        wait_until(
            lambda: ground.contract("bolt").get("rate") == "20000", "numbers of what was signed meanwhile"
        )
        assert ground.contract("acme")["rate"] == "10000"
        ground.use("acme", 300)
        since = begun()
        wait_until(lambda: begun() > since + 1, "a whole round")
    value = ground.metrics.registry.get_sample_value
    assert value("taas_allocator_working", {"cell": "pool-1"}) == 1
    rows = ground.minutes(signed.contract_id).values()
    assert [sum(getattr(row, name) for row in rows) for name in ("used_mu", "borrowed_mu", "refused")] == [
        1_000,
        30,
        2,
    ]
    labels = {"tenant": ground.tenant("acme"), "pool": "llama", "contract": signed.contract_id}
    assert value("taas_contract_used_units_total", labels) == 1


# Redis's own clock from one round to the next: around full minutes, through pauses, and an hour back or
# forth.
LEAPS_MS = (0, 1, 999, 1_000, 59_999, 60_000, 60_001, 3_600_000, -1, -1_000, -60_000, -3_600_000)
rounds_of_use = st.lists(
    st.tuples(
        st.sampled_from(LEAPS_MS),
        st.integers(-50, 5_000),
        st.integers(0, 90),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=2,
    max_size=8,
)


def test_fault_40_each_unit_is_in_exactly_one_minute_whatever_the_clock_does(
    database: Engine, raw_redis: redis.Redis, valkey: redis.Redis
) -> None:
    ground = open_ground(database, raw_redis, valkey)
    signed = ground.sign("acme", 10)
    allocators = [ground.allocator("one"), ground.allocator("other")]
    now_ms = T0 + 2 * 3_600_000 - 1
    allocators[0].allocate_once(now_ms)

    @settings(max_examples=examples(40), deadline=None)
    @given(rounds_of_use)
    def check(rounds: list[tuple[int, int, int, int, bool]]) -> None:
        nonlocal now_ms
        for leap_ms, used, borrowed, refused, changes in rounds:
            now_ms = max(T0 + 60_000, now_ms + leap_ms)
            ground.use("acme", used, borrowed=borrowed, refused=refused)
            if changes:
                allocators[0].close()
                allocators.reverse()
            allocators[0].allocate_once(now_ms)
            rows = ground.minutes(signed.contract_id).values()
            counted = [int(ground.contract("acme").get(name, 0)) for name in ("used", "borrowed", "refused")]
            assert [
                sum(getattr(row, f) for row in rows) for f in ("used_mu", "borrowed_mu", "refused")
            ] == counted
            assert all(row.minute_ms % 60_000 == 0 and row.assigned_mu <= 600_000 for row in rows)

    check()


def test_fault_40_what_streams_on_past_its_contracts_end_is_in_the_contracts_last_minutes(
    ground: Ground,
) -> None:
    """The end is a ms before midnight at the end of a month."""
    end_ms = T0 + 17 * DAY - 8 * 3_600_000 - 1
    signed = ground.sign("acme", 10, until_ms=end_ms)
    allocator = ground.allocator()
    allocator.allocate_once(end_ms - 1)
    ground.restorer().step(end_ms - 1)
    stream = ground.request("r1")
    assert isinstance(stream.reserve(cost_mu=100), Reserved)
    for after_ms in (0, 1, 60_000):
        allocator.allocate_once(end_ms + after_ms)
        # It has none any more, and what is open is still charged to it.
        assert ground.contract("acme")["rate"] == "0"
    stream.settle(cost_mu=250)
    allocator.allocate_once(end_ms + 61_000)
    assert ground.contract("acme") == {}
    rows = ground.minutes(signed.contract_id)
    assert sum(row.used_mu for row in rows.values()) == 250
    assert sum(row.assigned_mu for row in rows.values()) == 10


def test_fault_40_levels_drain_after_redis_clock_went_back_by_an_hour(ground: Ground) -> None:
    ground.sign("acme", 10)
    ground.allocator().allocate_once(T0)
    ground.restorer().step(T0)
    limited = {"tenant_limits": Limits.of(requests_per_minute=5)}
    for name, key, fields, limits in (
        ("acme", redis_keys.contract_bucket(CELL, ground.tenant("acme")), {"u": 15_000}, {}),
        ("bolt", ground.request("r", "bolt").keys.tenant_bucket, {"r": 5, "u": 0, "c": 0}, limited),
    ):
        seconds, _ = ground.text.time()
        ground.text.hset(key, mapping={**fields, "t": (int(seconds) + 3_600) * 1_000_000})
        assert isinstance(ground.request(f"{name}-1", name, **limits).reserve(1), LimitReached)
        # As if so much time had passed since.
        age_bucket(ground.text, key, 60)
        assert isinstance(ground.request(f"{name}-2", name, **limits).reserve(1), Reserved)
