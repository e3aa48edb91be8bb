"""Which cells have something to do: those are found, and the others cost nothing."""

import pytest
import redis

from billing.usage.busy_cells import BusyCells
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus

FAR_MS = 4_000_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def know(client: redis.Redis, *cells: str) -> None:
    client.sadd(redis_keys.CELLS, *cells)


def register(client: redis.Redis, cell: str, lease_until_ms: int = FAR_MS) -> None:
    name, url = f"i-{cell}", "http://127.0.0.1:1"
    entry = InstanceEntry(
        instance=name,
        model=cell,
        pool=cell,
        cell=cell,
        url=url,
        key=None,
        epoch="e1",
        status=InstanceStatus.READY,
        lease_until_ms=lease_until_ms,
    )
    client.hset(redis_keys.INSTANCES, name, entry.to_json())


def test_a_cell_with_an_instance_is_busy_at_once_and_a_minute_after_it_has_gone(
    raw_redis: redis.Redis, clock: Clock
) -> None:
    know(raw_redis, "a", "b")
    busy = BusyCells(raw_redis, clock=clock)
    assert busy.names() == []
    register(raw_redis, "b")
    assert busy.names() == []
    assert busy.names(fresh=True) == ["b"]
    register(raw_redis, "b", lease_until_ms=1)
    clock.now_s += 59
    assert busy.names() == ["b"]
    clock.now_s += 2
    assert busy.names() == []


@pytest.mark.parametrize("sign", ["open", "waiting", "usage"])
def test_what_a_cell_has_left_to_do_keeps_it_busy_without_any_instance(
    raw_redis: redis.Redis, clock: Clock, sign: str
) -> None:
    know(raw_redis, "a", "b")
    if sign == "open":
        raw_redis.zadd(redis_keys.open_requests("a"), {"r": 1})
    elif sign == "waiting":
        raw_redis.zadd(redis_keys.waiting_tenants("a", "f"), {"t": 1})
    else:
        raw_redis.xadd(redis_keys.usage_stream("a"), {redis_keys.USAGE_FIELD: "x"})
    busy = BusyCells(raw_redis, clock=clock)
    # The first look is at all cells.
    assert busy.names() == ["a"]
    clock.now_s += 61
    assert busy.names() == ["a"]
    raw_redis.delete(redis_keys.open_requests("a"), redis_keys.waiting_tenants("a", "f"))
    raw_redis.xtrim(redis_keys.usage_stream("a"), maxlen=0)
    clock.now_s += 61
    assert busy.names() == []


def test_every_idle_cell_is_looked_at_within_a_minute_and_few_of_them_at_once(
    raw_redis: redis.Redis, clock: Clock
) -> None:
    cells = [f"c{number:03}" for number in range(600)]
    know(raw_redis, *cells)
    busy = BusyCells(raw_redis, clock=clock)
    assert busy.names() == []
    # As after an outage in which a gateway's journal came late: nobody registers there.
    for cell in cells[::7]:
        raw_redis.zadd(redis_keys.open_requests(cell), {"r": 1})
    before = raw_redis.info("commandstats")["cmdstat_exists"]["calls"]
    looked = []
    for _ in range(60):
        known = len(busy.names())
        clock.now_s += 1
        busy.names()
        now = raw_redis.info("commandstats")["cmdstat_exists"]["calls"]
        looked.append(now - before - known)
        before = now
    assert busy.names() == cells[::7]
    # Ten a second, and one more for each that it then finds.
    assert max(looked) <= 10 + 2


@pytest.mark.parametrize("sign", ["open", "waiting", "usage"])
def test_a_busy_cell_with_nothing_but_an_instance_is_quiet_until_something_comes(
    raw_redis: redis.Redis, clock: Clock, sign: str
) -> None:
    know(raw_redis, "a", "b")
    register(raw_redis, "a")
    register(raw_redis, "b")
    busy = BusyCells(raw_redis, clock=clock)
    # At the first look nothing is known of them.
    assert busy.quiet() == frozenset()
    clock.now_s += 1
    assert busy.quiet() == {"a", "b"}
    assert busy.at_rest()
    if sign == "open":
        raw_redis.zadd(redis_keys.open_requests("a"), {"r": 1})
    elif sign == "waiting":
        raw_redis.zadd(redis_keys.waiting_tenants("a", "f"), {"t": 1})
    else:
        raw_redis.xadd(redis_keys.usage_stream("a"), {redis_keys.USAGE_FIELD: "x"})
    clock.now_s += 1
    assert busy.quiet() == {"b"}
    assert not busy.at_rest()


@pytest.mark.parametrize("mark", [redis_keys.PROJECTION, redis_keys.INTACT])
def test_a_redis_that_was_emptied_or_restored_has_other_marks(
    raw_redis: redis.Redis, clock: Clock, mark: str
) -> None:
    raw_redis.set(mark, "a:1")
    busy = BusyCells(raw_redis, clock=clock)
    before = busy.marks()
    clock.now_s += 1
    assert busy.marks() == before
    raw_redis.set(mark, "a:2")
    clock.now_s += 1
    assert busy.marks() != before


def test_all_cells_are_known_and_a_new_one_at_once(raw_redis: redis.Redis, clock: Clock) -> None:
    know(raw_redis, "a")
    busy = BusyCells(raw_redis, clock=clock)
    assert busy.all() == ["a"]
    know(raw_redis, "b")
    clock.now_s += 1
    assert busy.all() == ["a", "b"]
    # After Redis was emptied and written anew, with as many as before.
    raw_redis.delete(redis_keys.CELLS)
    know(raw_redis, "c", "d")
    raw_redis.set(redis_keys.PROJECTION, "another:1")
    clock.now_s += 1
    assert busy.all() == ["c", "d"]
