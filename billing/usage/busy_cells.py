"""Which cells have something to do, so that billing's loops visit these and leave the others alone.

A cell is busy while it has a live instance, an open or waiting request, or usage that is not in SQL, and for
a minute after that. Requests reach a cell only through an instance, so a cell that becomes busy shows in
`taas:instances`. All other cells are checked once at the start and then a few per second, so that nothing is
ever left behind in one of them.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import redis

from billing.wire import redis_clock, redis_keys
from billing.wire.instance_entry import InstanceEntry

# Several loops ask every second; they share one reading of Redis.
_FRESH_S: Final = 0.9
# An idle cell stays in the set for this long, so that an instance that restarts does not make it leave and
# return.
_LINGER_S: Final = 60.0
# In this time every idle cell is checked once.
_SWEEP_S: Final = 60.0
# Commands of one pipeline.
_LOOKS_MAX: Final = 1_000


class BusyCells:
    """One per process, for all its threads. The client must not decode responses."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._turn = threading.Lock()
        self._refreshed: float | None = None
        self._busy_until: dict[str, float] = {}
        self._catalogue: tuple[object, int] | None = None
        self._all: list[str] = []
        self._swept = 0
        self._quiet: frozenset[str] = frozenset()
        self._marks: tuple[object, ...] = ()

    def names(self, *, fresh: bool = False) -> list[str]:
        """Their names, sorted, at most a second old; `fresh`: as of now. Raises redis.RedisError."""
        with self._turn:
            now = self._clock()
            if fresh or self._refreshed is None or now - self._refreshed >= _FRESH_S:
                self._refresh(now)
            return sorted(self._busy_until)

    def all(self) -> list[str]:
        """The names of all cells, as last read. Raises redis.RedisError."""
        self.names()
        return self._all

    def quiet(self) -> frozenset[str]:
        """Busy cells in which nothing was open, waiting or unread when last read: they only have an instance.
        Raises redis.RedisError.
        """
        self.names()
        return self._quiet

    def at_rest(self) -> bool:
        """Whether nothing was open, waiting or unread in any cell when last read. Raises redis.RedisError."""
        return self.quiet().issuperset(self.names())

    def marks(self) -> tuple[object, ...]:
        """A value that changes when Redis was emptied, restored or exchanged, or the catalogue changed.
        Raises redis.RedisError.
        """
        self.names()
        return self._marks

    def _refresh(self, now: float) -> None:
        known = list(self._busy_until)
        instances, has_work = self._read_catalogue(known)
        self._quiet = frozenset(cell for cell, work in zip(known, has_work, strict=True) if not work)
        first = self._refreshed is None
        # The time of the last reading determines how many are due: the sweep depends on time, not on how
        # often it is called.
        passed_s = _SWEEP_S if self._refreshed is None else now - self._refreshed
        self._busy_until |= dict.fromkeys(instances, now + _LINGER_S)
        lapsed = [cell for cell, until in self._busy_until.items() if until < now]
        looked_at = dict.fromkeys([*lapsed, *self._next_idle(passed_s)])
        found = _with_work(self._client, looked_at)
        for cell in looked_at:
            if cell in found:
                self._busy_until[cell] = now + _LINGER_S
            else:
                self._busy_until.pop(cell, None)
        if first:
            self._swept = 0
        self._refreshed = now

    def _read_catalogue(self, known: Sequence[str]) -> tuple[set[str], list[bool]]:
        """Cells of live instances, and whether each of the known ones has something to do; on the way, the
        names of all cells where they have changed.
        """
        with self._client.pipeline(transaction=False) as read:
            read.time()
            read.hvals(redis_keys.INSTANCES)
            read.get(redis_keys.PROJECTION)
            read.scard(redis_keys.CELLS)
            read.get(redis_keys.INTACT)
            for cell in known:
                read.exists(*_waits(cell))
                read.xlen(redis_keys.usage_stream(cell))
            clock, entries, marker, count, whole, *found = read.execute()
        self._marks = marker, whole
        if self._catalogue != (marker, count):
            names: Any = self._client.smembers(redis_keys.CELLS)
            self._all = sorted(name.decode() for name in names)
            self._catalogue = (marker, count)
        now_ms = redis_clock.milliseconds(clock)
        live = (_cell_of_live(entry, now_ms) for entry in entries)
        has_work = [bool(waits or unread) for waits, unread in zip(found[::2], found[1::2], strict=True)]
        return {cell for cell in live if cell is not None}, has_work

    def _next_idle(self, passed_s: float) -> list[str]:
        """The part of all cells that is due in the sweep, without those that are known to be busy."""
        count = min(len(self._all), math.ceil(len(self._all) * passed_s / _SWEEP_S))
        begin = self._swept if self._swept < len(self._all) else 0
        part = [*self._all[begin:], *self._all[:begin]][:count]
        self._swept = begin + count
        return [cell for cell in part if cell not in self._busy_until]


def _cell_of_live(entry: bytes, now_ms: int) -> str | None:
    """The cell of an instance whose lease holds or that has none. The audit reports entries that cannot be
    read.
    """
    try:
        instance = InstanceEntry.from_json(entry)
    except ValueError:
        return None
    return instance.cell if instance.is_live(now_ms) else None


def _with_work(client: redis.Redis, cells: Iterable[str]) -> set[str]:
    """Cells with open or waiting requests, or usage that is not in SQL."""
    rest, found = list(cells), set()
    while rest:
        part, rest = rest[:_LOOKS_MAX], rest[_LOOKS_MAX:]
        there = _ask(
            client, part, lambda pipe, cell: pipe.exists(*_waits(cell), redis_keys.usage_stream(cell))
        )
        # A stream exists longer than its entries.
        maybe = [cell for cell, count in zip(part, there, strict=True) if count]
        waiting = _ask(client, maybe, lambda pipe, cell: pipe.exists(*_waits(cell)))
        unread = _ask(client, maybe, lambda pipe, cell: pipe.xlen(redis_keys.usage_stream(cell)))
        found |= {cell for cell, a, b in zip(maybe, waiting, unread, strict=True) if a or b}
    return found


def _waits(cell: str) -> tuple[str, str, str]:
    return (
        redis_keys.open_requests(cell),
        redis_keys.waiting_tenants(cell, "o"),
        redis_keys.waiting_tenants(cell, "f"),
    )


def _ask(client: redis.Redis, cells: Collection[str], ask: Callable[[Any, str], object]) -> list[Any]:
    if not cells:
        return []
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            ask(read, cell)
        return read.execute()
