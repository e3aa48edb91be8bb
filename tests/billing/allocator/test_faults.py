"""Fault 34 for the allocator: whatever becomes of Redis, it does not end, the last numbers hold, and it goes on by itself."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from sqlalchemy import Engine

from billing.loop import Loop
from tests.billing.allocator.cells import Ground, open_ground
from tests.billing.contracts.selling import T0
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
    """The allocator's loop, faster than in the process, each round a second after the last; yields how many rounds have been begun."""
    allocator, stop, rounds = ground.allocator(), threading.Event(), itertools.count(1)
    begun = 0

    def step() -> bool:
        nonlocal begun
        begun = next(rounds)
        allocator.allocate_once(T0 + begun * SECOND)
        return False

    loop = threading.Thread(target=Loop("allocator", step, interval_ms=20, metrics=ground.metrics).run, args=(stop,))
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
        wait_until(lambda: ground.contract("bolt").get("rate") == "20000", "numbers of what was signed meanwhile")
        assert ground.contract("acme")["rate"] == "10000"
        ground.use("acme", 300)
        since = begun()
        wait_until(lambda: begun() > since + 1, "a whole round")
    value = ground.metrics.registry.get_sample_value
    assert value("taas_allocator_leader", {"cell": "pool-1"}) == 1
    rows = ground.minutes(signed.contract_id).values()
    assert [sum(getattr(row, name) for row in rows) for name in ("used_mu", "borrowed_mu", "refused")] == [1_000, 30, 2]
    labels = {"tenant": ground.tenant("acme"), "pool": "llama", "contract": signed.contract_id}
    assert value("taas_contract_used_units_total", labels) == 1
