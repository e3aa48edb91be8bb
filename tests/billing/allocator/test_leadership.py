"""One allocator a cell: another takes over when it dies, and never both at once."""

import subprocess
import sys
import time

from tests.billing.allocator.cells import Ground, only
from tests.billing.cell.requests import CELL
from tests.billing.contracts.selling import T0

LEASE_MS = 3_000
# What PTTL says of a key that has expired.
GONE = -2
# Another process that allocates every 100 ms until it is killed.
OTHER = """
import sys, time, redis
from sqlalchemy import create_engine
from billing.allocator.allocator import Allocator
from billing.metrics import BillingMetrics
allocator = Allocator(create_engine(sys.argv[1]), redis.Redis.from_url(sys.argv[2]), BillingMetrics(), owner="other")
while True:
    allocator.allocate_once()
    time.sleep(0.1)
"""


def test_the_second_allocator_leaves_the_cell_alone_and_follows_at_once_when_it_is_given_back(ground: Ground) -> None:
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
    key = redis_keys.allocator_lock(CELL)
    while ground.text.get(key) == "other":
        assert ground.text.pttl(key) in {*range(LEASE_MS + 1), GONE}
        ours.allocate_once()
    assert ground.text.get(key) == "ours" or ours.allocate_once()
