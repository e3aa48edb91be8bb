"""One allocator a cell: another takes over when it dies, and never both at once."""

import subprocess
import sys
import time

from billing.wire import redis_keys
from tests.billing.allocator.cells import Ground, only
from tests.billing.cell.requests import CELL
from tests.billing.contracts.selling import T0

LEASE_MS = 3_000
# Another process that allocates every 100 ms until it is killed.
OTHER = """
import sys, time, redis
from sqlalchemy import create_engine
from billing.allocator.allocator import Allocator
from billing.metrics import BillingMetrics
stores = create_engine(sys.argv[1]), redis.Redis.from_url(sys.argv[2])
allocator = Allocator(*stores, BillingMetrics(), owner="other")
while True:
    allocator.allocate_once()
    time.sleep(0.1)
"""


def test_the_second_allocator_leaves_the_cell_alone_and_follows_at_once_when_it_is_given_back(
    ground: Ground,
) -> None:
    first, second = ground.allocator("first"), ground.allocator("second")
    assert only(first.allocate_once(T0)).cell.cell == CELL
    assert second.allocate_once(T0) == []
    assert ground.holder() == "first"
    first.close()
    assert only(second.allocate_once(T0)).cell.cell == CELL
    assert first.allocate_once(T0) == []


def test_one_that_stood_still_does_not_take_back_what_another_has(ground: Ground) -> None:
    first, second = ground.allocator("first"), ground.allocator("second")
    first.allocate_once(T0)
    ground.forget_leases()
    assert len(second.allocate_once(T0)) == 1
    assert first.allocate_once(T0) == []
    first.close()
    assert ground.holder() == "second"


def test_a_killed_allocator_is_replaced_within_three_seconds(
    ground: Ground, migrated_database_url: str, valkey_url: str
) -> None:
    other = subprocess.Popen([sys.executable, "-c", OTHER, migrated_database_url, valkey_url])
    try:
        deadline = time.monotonic() + 60
        while ground.holder() != "other":
            assert other.poll() is None
            assert time.monotonic() < deadline
        ours = ground.allocator("ours")
        assert ours.allocate_once() == []
    finally:
        other.kill()
        other.wait()
    # By Redis's clock the lease of the dead one ends within three seconds, and no later.
    assert lease_ends(ground, "other") <= clock_ms(ground) + LEASE_MS
    while not ours.allocate_once():
        # Nothing renews it: with it the cell is free.
        assert lease_ends(ground, "other") <= clock_ms(ground) + LEASE_MS
    assert ground.holder() == "ours"


def test_a_lease_does_not_outlive_a_clock_of_redis_that_went_back(ground: Ground) -> None:
    ground.allocator("gone").allocate_once(T0)
    # As the clock that went back an hour shows it.
    ground.text.zadd(redis_keys.ALLOCATORS_ALIVE, {"gone": clock_ms(ground) + 3_600_000})
    assert ground.allocator("ours").allocate_once(T0) == []
    assert lease_ends(ground, "gone") <= clock_ms(ground) + LEASE_MS


def clock_ms(ground: Ground) -> int:
    seconds, micros = ground.text.time()
    return int(seconds) * 1000 + int(micros) // 1000


def lease_ends(ground: Ground, process: str) -> int:
    return int(ground.text.zscore(redis_keys.ALLOCATORS_ALIVE, process) or 0)
