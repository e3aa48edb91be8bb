"""Some hundred cells of which few have something to do: work is bounded by these, on two processes, and
after a loss all come back.
"""

import json
from collections import Counter
from collections.abc import Callable

import pytest
import redis
from sqlalchemy import Connection, text

from billing.allocator.allocator import Allocator
from billing.allocator.restore import Restorer
from billing.catalogue import models
from billing.metrics import BillingMetrics
from billing.usage.busy_cells import BusyCells
from billing.wire import redis_keys
from tests.billing.allocator.cells import CELL, Ground
from tests.billing.contracts.selling import T0

SECOND = 1_000
IDLE = [f"idle-{number:03}" for number in range(300)]
BUSY = [f"busy-{number:02}" for number in range(20)]


@pytest.fixture
def ground(ground: Ground) -> Ground:
    """Three hundred models that nobody uses, and twenty with an instance; the cell of the others' tests
    goes.
    """
    ground.text.delete(redis_keys.INSTANCES)
    with ground.engine.begin() as connection:
        create(connection, [*IDLE, *BUSY])
    furnish(ground)
    return ground


def create(connection: Connection, names: list[str]) -> None:
    """Models of these names: the first is made, and the others are as it. One by one they take a second."""
    first, *others = names
    models.create(connection, models.ModelSpec(name=first, context_tokens=4096))
    for table, named in (("model", ("name", "pool", "cell", "engine_model")), ("model_weights", ("model",))):
        new = ", ".join(f"'{column}', new" for column in named)
        rows = (
            f"SELECT (jsonb_populate_record(NULL::{table}, to_jsonb(old) || jsonb_build_object({new}))).*"  # noqa: S608
            f" FROM {table} old, unnest(CAST(:others AS text[])) new WHERE old.{named[0]} = :first"
        )
        connection.execute(text(f"INSERT INTO {table} {rows}"), {"first": first, "others": others})


def furnish(ground: Ground) -> None:
    """What the projection and workers write."""
    ground.text.sadd(redis_keys.CELLS, *IDLE, *BUSY)
    for name in BUSY:
        register(ground, name)


def register(ground: Ground, name: str, *, waiting: int = 0) -> None:
    entry = {
        "instance": f"i-{name}", "model": name, "pool": name, "cell": name, "url": "http://127.0.0.1:1",
        "key": None, "epoch": "e", "status": "ready", "lease_until_ms": 0, "load": {"waiting": waiting},
    }  # fmt: skip
    ground.text.hset(redis_keys.INSTANCES, f"i-{name}", json.dumps(entry))


def commands(client: redis.Redis, work: Callable[[], object]) -> int:
    """How many commands Redis was given for it."""
    before = client.info("stats")["total_commands_processed"]
    work()
    # The second INFO counts itself.
    return int(client.info("stats")["total_commands_processed"]) - int(before) - 1


def cells_of(allocator: Allocator, now_ms: int) -> list[str]:
    return [done.cell.cell for done in allocator.allocate_once(now_ms)]


def test_two_processes_divide_the_busy_cells_and_one_takes_all_when_the_other_is_gone(ground: Ground) -> None:
    for name in BUSY:
        ground.text.zadd(redis_keys.open_requests(name), {"r": 1})
    first, second = ground.allocator("first"), ground.allocator("second")
    assert sorted(cells_of(first, T0)) == BUSY
    assert cells_of(second, T0) == []
    for second_ in range(1, 4):
        done = [*cells_of(first, T0 + second_ * SECOND), *cells_of(second, T0 + second_ * SECOND)]
        assert Counter(done).total() == len(set(done))
    assert sorted(done) == BUSY
    assert len(cells_of(first, T0 + 4 * SECOND)) == 10
    # As after a kill: its lease lapses.
    ground.text.zadd(redis_keys.ALLOCATORS_ALIVE, {"second": 1})
    assert sorted(cells_of(first, T0 + 5 * SECOND)) == BUSY


class Clock:
    """One that a test moves, for the allocator and for its looks."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_idle_cells_cost_no_command_of_a_round(ground: Ground) -> None:
    # A moment in which nothing is due by the clock.
    clock = Clock()
    allocator = ground.allocator(busy=BusyCells(ground.raw, clock=clock), clock=clock)
    restorer = ground.restorer()
    allocator.allocate_once(T0)
    # The first look is at all cells.
    assert restorer.restore_once(T0)
    assert restorer.restore_once(T0) == []
    least = commands(ground.raw, lambda: allocator.allocate_once(T0 + SECOND))
    # The commands of scripts are counted too.
    assert least < 25 * len(BUSY)
    assert commands(ground.raw, lambda: restorer.restore_once(T0 + SECOND)) < 3 * len(BUSY)
    with ground.engine.begin() as connection:
        create(connection, [f"more-{number}" for number in range(300)])
    assert commands(ground.raw, lambda: allocator.allocate_once(T0 + 2 * SECOND)) <= least


def test_a_quiet_cell_is_left_alone_until_something_comes_or_is_lost(ground: Ground) -> None:
    clock = Clock()
    allocator = ground.allocator(busy=BusyCells(ground.raw, clock=clock), clock=clock)

    def cells_a_second_later(seconds: int = 1) -> list[str]:
        clock.now_s += seconds
        return sorted(cells_of(allocator, T0))

    assert cells_a_second_later() == BUSY
    assert cells_a_second_later(2) == []
    ground.text.zadd(redis_keys.open_requests(BUSY[3]), {"r": 1})
    assert [cells_a_second_later() for _ in range(2)] == [[BUSY[3]], [BUSY[3]]]
    ground.text.delete(redis_keys.open_requests(BUSY[3]))
    register(ground, BUSY[5], waiting=1)
    assert cells_a_second_later() == [BUSY[5]]
    assert cells_a_second_later() == []
    ground.text.delete(redis_keys.PROJECTION, *(redis_keys.room(cell) for cell in BUSY))
    ground.text.set(redis_keys.PROJECTION, "a:2")
    assert cells_a_second_later() == BUSY
    assert all(ground.text.exists(redis_keys.room(cell)) for cell in BUSY)
    assert cells_a_second_later() == []
    assert cells_a_second_later(10) == BUSY, "whatever was not thought of"


def test_a_cell_in_which_something_is_sold_or_recovers_is_never_still(ground: Ground) -> None:
    clock = Clock()
    allocator = ground.allocator(busy=BusyCells(ground.raw, clock=clock), clock=clock)
    ground.register("i-1", kv_usage=0.99)
    ground.register("i-2")

    def sequences() -> float | None:
        clock.now_s += 1
        done = {each.cell.cell: each for each in allocator.allocate_once(T0)}
        return sum(share.sequences for share in done[CELL].shares) if CELL in done else None

    strained = [sequences() for _ in range(3)]
    ground.register("i-1")
    recovers = []
    while (now := sequences()) is not None:
        recovers.append(now)
    assert strained[-1] is not None
    assert recovers[-1] == 32 > strained[-1]
    ground.sign("acme", 10)
    assert [sequences() for _ in range(3)] == [32, 32, 32]


def test_after_a_loss_all_cells_are_whole_in_one_pass(ground: Ground) -> None:
    restorer = ground.restorer()
    assert len(restorer.restore_once(T0)) == len(IDLE) + len(BUSY) + 1
    ground.text.flushall()
    # Also before the projection has written anything.
    assert len(restorer.restore_once(T0)) == len(IDLE) + len(BUSY) + 1
    assert all(ground.text.exists(redis_keys.intact(cell)) for cell in (*IDLE, *BUSY))
    furnish(ground)
    assert restorer.restore_once(T0) == []
    ground.text.delete(redis_keys.intact(BUSY[0]))
    # Busy since it has its instance: what is lost of it alone is seen too.
    while not (found := Restorer(ground.engine, ground.raw, BillingMetrics(), owner="b").restore_once(T0)):
        pass
    assert found == [BUSY[0]]


def test_a_page_of_metrics_has_no_line_for_what_is_idle(ground: Ground) -> None:
    ground.allocator().allocate_once(T0)
    lines = {
        sample.labels.get("cell") or sample.labels.get("pool")
        for family in ground.metrics.registry.collect()
        for sample in family.samples
    }
    assert lines & {*IDLE} == set()
    assert lines >= {*BUSY}


def test_a_cell_that_hangs_holds_up_no_other(ground: Ground) -> None:
    """The hanging one waits for a lock in SQL, as behind somebody's long transaction."""
    signed = ground.sign("acme", 10)
    allocator = ground.allocator(patience_s=0.2)
    with ground.engine.begin() as connection:
        connection.exec_driver_sql("lock table contract_minute in access exclusive mode")
        others: set[str] = set()
        for second in range(50):
            others.update(cells_of(allocator, T0 + second * SECOND))
            if others == {*BUSY}:
                break
        assert others == {*BUSY}
    while not ground.minutes(signed.contract_id):
        allocator.allocate_once(T0 + 60 * SECOND)
    allocator.close()
