"""Makes what runs be what is wanted, round by round.

Whether an instance lives is said by its own lease in Redis, which it renews every second. Neither the
launcher's view of its processes nor Ray's health checks decide that: they take longer, and cannot see a
machine that is cut off. An instance whose lease has run out is fenced first, so that it cannot come back, and
then replaced.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_clock, redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.lease_watch import LeaseWatch
from serving.backoff import Backoff
from serving.launching.launcher import Launch, Launcher, NoRoom, origin
from serving.registry import fence, fence_lapsed

# After Redis was away every lease has run out: workers get time to renew theirs.
_RENEWED_WITHIN_S: Final = 6.0


class _Started(Enum):
    """What became of a start. `LATER`: the last one has failed, and there is a pause before the next."""

    ALL = auto()
    NO_ROOM = auto()
    LATER = auto()


@dataclass(slots=True)
class _Pool:
    """What a pool's instances that are started in one way have been through. `not_before`: when the next one
    may be started.
    """

    spec: str = ""
    backoff: Backoff = field(default_factory=Backoff)
    not_before: float = 0.0
    told: str = ""


class Reconciler:
    """One per launcher. `note` gets a line for people at each change."""

    def __init__(self, launcher: Launcher, redis: Redis, note: Callable[[str], None]) -> None:
        self._launcher = launcher
        self._redis = redis
        self._note = note
        self._leases = LeaseWatch()
        self._judges_from = time.monotonic() + _RENEWED_WITHIN_S
        self._pools: dict[str, _Pool] = {}
        # Instances of this launcher that run and are to stay, and since when each was ready.
        self._members: dict[str, float | None] = {}
        self._draining: set[str] = set()
        self._fenced: set[str] = set()

    async def round(self, launches: Sequence[Launch]) -> None:
        """Look once, and do what is missing. While Redis is away, nothing is done."""
        running = await self._launcher.running()
        entries = await self._read()
        if entries is None:
            self._judges_from = time.monotonic() + _RENEWED_WITHIN_S
            return
        wanted = {launch.pool: launch for launch in launches}
        await self._replace_lost(running, entries)
        await self._take_stock(running - self._draining - self._fenced, entries)
        self._draining &= running
        for instance in [*self._members]:
            if origin(instance)[0] not in wanted:
                await self._drain(instance, "nothing of its pool is launched any more")
        for pool, launch in wanted.items():
            ours = [instance for instance in self._members if origin(instance)[0] == pool]
            await self._level(launch, ours)

    async def _read(self) -> Mapping[str, tuple[InstanceEntry, bool]] | None:
        """Every entry, and whether its lease holds; None if Redis does not answer."""
        try:
            async with self._redis.pipeline(transaction=False) as read:
                read.time()
                read.hgetall(redis_keys.INSTANCES)
                clock, raw = await read.execute()
        except (RedisError, OSError):
            return None
        now_ms = redis_clock.milliseconds(clock)
        found = {}
        for value in raw.values():
            try:
                entry = InstanceEntry.from_json(value)
            except ValueError:
                continue
            found[entry.instance] = entry, self._leases.holds(entry, now_ms)
        return found

    async def _replace_lost(
        self, running: frozenset[str], entries: Mapping[str, tuple[InstanceEntry, bool]]
    ) -> None:
        """Fence those whose lease has run out. What is missing then is started as any other."""
        if time.monotonic() < self._judges_from:
            return
        for instance in running - self._fenced:
            entry, holds = entries.get(instance, (None, True))
            if entry is None or holds or entry.status is InstanceStatus.DOWN:
                continue
            try:
                if not await fence_lapsed(self._redis, entry):
                    continue
            except (RedisError, OSError):
                return
            self._note(f"{instance}: its lease has run out; it is replaced")
            self._fenced.add(instance)
            await self._launcher.end(instance)
        self._fenced &= running

    async def _take_stock(
        self, staying: frozenset[str], entries: Mapping[str, tuple[InstanceEntry, bool]]
    ) -> None:
        now = time.monotonic()
        for instance in self._members.keys() - staying - self._fenced:
            # Its worker has ended by itself: the next one is started later each time.
            ready_s = self._members[instance]
            pool = self._pool(*origin(instance))
            wait_s = pool.backoff.after(0.0 if ready_s is None else now - ready_s)
            pool.not_before = now + wait_s
            self._note(f"{instance}: its worker has ended; another one is started in {wait_s:.0f} s")
            entry, _ = entries.get(instance, (None, False))
            if entry is not None and entry.status is not InstanceStatus.DOWN:
                # It has not said so itself: if only its launcher has lost sight of it, it must not come back.
                with contextlib.suppress(RedisError, OSError):
                    await fence(self._redis, instance)
        for instance in staying:
            entry, holds = entries.get(instance, (None, False))
            is_ready = holds and entry is not None and entry.status is InstanceStatus.READY
            before = self._members.get(instance)
            if is_ready and before is None:
                self._note(f"{instance}: ready")
            self._members[instance] = (before or now) if is_ready else None
        for instance in self._members.keys() - staying:
            del self._members[instance]

    async def _level(self, launch: Launch, ours: list[str]) -> None:
        """As many as are wanted, all of them started as is wanted now: old ones go one by one, each after a
        new one is ready.
        """
        spec = launch.spec()
        old = [instance for instance in ours if origin(instance)[1] != spec]
        new = [instance for instance in ours if origin(instance)[1] == spec]
        starting = [instance for instance in new if self._members[instance] is None]
        surplus = len(ours) - launch.instances
        if surplus < 0:
            await self._start(launch, -surplus)
        elif surplus > 0:
            may_go = surplus - 1 if old and starting else surplus
            for instance in [*old, *starting, *new][:may_go]:
                await self._drain(
                    instance, "it was started in an old way" if instance in old else "one too many"
                )
        elif old and not starting and await self._start(launch, 1) is _Started.NO_ROOM:
            ready = [instance for instance in ours if self._members[instance] is not None]
            if len(ready) > 1:
                await self._drain(old[0], "it makes room for one that is started in the new way")

    async def _start(self, launch: Launch, count: int) -> _Started:
        pool = self._pool(launch.pool, launch.spec())
        if time.monotonic() < pool.not_before:
            return _Started.LATER
        for _ in range(count):
            instance = launch.new_instance()
            try:
                await self._launcher.start(instance, launch)
            except NoRoom as exc:
                if pool.told != str(exc):
                    pool.told = str(exc)
                    self._note(f"{launch.pool}: no instance can be started: {exc}")
                return _Started.NO_ROOM
            pool.told = ""
            self._members[instance] = None
            self._note(f"{instance}: started")
        return _Started.ALL

    async def _drain(self, instance: str, why: str) -> None:
        self._note(f"{instance}: drains, because {why}")
        self._members.pop(instance, None)
        self._draining.add(instance)
        await self._launcher.drain(instance)

    def _pool(self, name: str, spec: str) -> _Pool:
        """What was mended is tried at once."""
        if name not in self._pools or self._pools[name].spec != spec:
            self._pools[name] = _Pool(spec)
        return self._pools[name]
