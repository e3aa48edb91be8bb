"""Busy cells are divided among billing processes: none has two allocators, none is forgotten, whoever
dies, joins or stands still.
"""

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from billing.allocator.cell_state import Memory, read_state, write_state
from billing.allocator.leases import CellLeases
from billing.wire import redis_keys
from tests.examples import examples

PROCESSES = ("p1", "p2", "p3")
CELLS = tuple(f"c{number}" for number in range(7))
PROCESS = st.sampled_from(PROCESSES)


def lapse(client: redis.Redis, process: str) -> None:
    """As if its lease had ended a moment ago."""
    now_s, _ = client.time()
    client.zadd(redis_keys.ALLOCATORS_ALIVE, {process: (int(now_s) - 1) * 1000}, xx=True)


class LeaseMachine(RuleBasedStateMachine):
    """Three processes that ask in any order, with any of the cells busy; `held` is what each one believes."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.processes = {name: CellLeases(self.client, name) for name in PROCESSES}
        self.held: dict[str, set[str]] = {}
        self.busy = set(CELLS)

    @rule(process=PROCESS, pinned=st.sets(st.sampled_from(CELLS)))
    def ask(self, process: str, pinned: set[str]) -> None:
        keeps = pinned & self.held.get(process, set()) & self.busy
        self.held[process] = set(self.processes[process].share(sorted(self.busy), keeps))
        assert keeps <= self.held[process]

    @rule(process=PROCESS)
    def leave(self, process: str) -> None:
        self.processes[process].leave()
        self.held.pop(process, None)

    @rule(process=PROCESS)
    def die(self, process: str) -> None:
        """Its lease lapses; by then it has stopped to believe in it, for its clock runs as Redis's does."""
        lapse(self.client, process)
        self.held.pop(process, None)

    @rule(busy=st.sets(st.sampled_from(CELLS)))
    def other_cells_are_busy(self, busy: set[str]) -> None:
        self.busy = busy

    @rule()
    def lose_everything(self) -> None:
        self.client.flushall()
        # Each one hears of it with its next call; until then the cell itself takes the writes of one only.
        self.held.clear()

    @invariant()
    def no_cell_has_two(self) -> None:
        believed = [cell for cells in self.held.values() for cell in cells]
        assert len(believed) == len(set(believed))

    def teardown(self) -> None:
        """Whatever has happened: a few calls later each busy cell has one holder, and nobody has more than
        its part.
        """
        alive = sorted(self.held) or [PROCESSES[0]]
        for _ in range(3):
            for process in alive:
                self.ask(process, set())
        assert set().union(*(self.held[process] for process in alive)) == self.busy
        most = -(-len(self.busy) // len(alive))
        assert all(len(self.held[process]) <= most for process in alive)
        assert set(self.client.hkeys(redis_keys.ALLOCATORS)) == {cell.encode() for cell in self.busy}


def test_no_cell_has_two_allocators_and_none_is_forgotten(raw_redis: redis.Redis) -> None:
    machine = type("Machine", (LeaseMachine,), {"client": raw_redis})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(60), stateful_step_count=30, deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        ),
    )  # fmt: skip


def test_one_that_stood_still_since_it_read_the_cell_writes_nothing(raw_redis: redis.Redis) -> None:
    def write(state: object, at_ms: int) -> bool:
        return write_state(
            raw_redis, "c", read=state, contracts={}, accounts={}, shares=(), capacity_mu_s=0, gone=(),
            memory=Memory(at_ms)  # type: ignore[arg-type]
        )  # fmt: skip

    stale, current = read_state(raw_redis, "c", ()), read_state(raw_redis, "c", ())
    assert write(current, 2_000)
    assert not write(stale, 1_000)
    assert read_state(raw_redis, "c", ()).memory.at_ms == 2_000
