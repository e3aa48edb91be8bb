"""Fault 40 for instances: Redis's clock jumps, and who is there stays, and who is gone goes."""

from dataclasses import replace

import pytest

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.lease_watch import LeaseWatch

LEASE_MS = 5_000
T0 = 1_800_000_000_000
ENTRY = InstanceEntry(
    instance="i1", model="m", pool="m", cell="m", url="http://127.0.0.1:1", key=None, epoch="e1",
    status=InstanceStatus.READY, lease_until_ms=T0 + LEASE_MS,
)  # fmt: skip


class World:
    """A worker that renews its lease every second, a reader that looks twice a second, and Redis's clock,
    which jumps.
    """

    def __init__(self) -> None:
        self.now_s = 50.0
        self.ahead_ms = 0
        self.watch = LeaseWatch(clock=lambda: self.now_s)
        self.entry = ENTRY
        self.renews = True

    @property
    def redis_ms(self) -> int:
        return T0 + int((self.now_s - 50) * 1000) + self.ahead_ms

    def pass_time(self, seconds: float) -> list[bool]:
        """What the reader believes, look by look."""
        believed = []
        for _ in range(int(seconds * 2)):
            believed.append(self.watch.holds(self.entry, self.redis_ms))
            self.now_s += 0.5
            if self.renews and self.now_s % 1 == 0:
                self.entry = replace(self.entry, lease_until_ms=self.redis_ms + LEASE_MS)
        return believed


@pytest.mark.parametrize("jump_ms", [6_000, 20_000, 3_600_000, -6_000, -3_600_000])
def test_fault_40_a_jump_of_redis_clock_takes_no_instance_away(jump_ms: int) -> None:
    world = World()
    assert all(world.pass_time(10))
    world.ahead_ms = jump_ms
    assert all(world.pass_time(10))


@pytest.mark.parametrize("jump_ms", [0, 20_000, -3_600_000])
def test_fault_40_an_instance_whose_worker_died_goes(jump_ms: int) -> None:
    world = World()
    assert all(world.pass_time(10))
    world.renews = False
    world.ahead_ms = jump_ms
    believed = world.pass_time(700)
    gone = believed.index(False)
    assert not any(believed[gone:])
    # Without a jump no later than the lease says.
    assert gone <= (2 * LEASE_MS / 1000 + 1 if jump_ms >= 0 else 2 * 606)


def test_who_was_gone_before_the_first_look_is_gone() -> None:
    world = World()
    world.renews = False
    world.ahead_ms = 20_000
    assert not any(world.pass_time(10))


def test_one_that_was_added_by_hand_has_no_lease_that_could_lapse() -> None:
    assert LeaseWatch().holds(replace(ENTRY, lease_until_ms=0), T0 + 10**12)
