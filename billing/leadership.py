"""Which process does what only one may do: a lock for each task, taken by the first process and renewed while
it lives.

It owns the locks, and when a leader's work is due. It does not know the work.
"""

import time
from collections.abc import Callable
from typing import Final

import redis
from redis.lock import Lock

# A leader renews it every second; a dead one is replaced within this time.
_LEASE_S: Final = 3.0


def shorten(client: redis.Redis, name: str, lease_s: float) -> None:
    """Let another process's lock lapse within its lease, if it would hold for longer because Redis's clock
    went back. Raises redis.RedisError.
    """
    client.pexpire(name, int(lease_s * 1000), lt=True)


class Leadership:
    """The locks that one process holds. `owner`: its name, random by default."""

    def __init__(
        self, client: redis.Redis, owner: str | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._owner = owner
        self._locks: dict[str, Lock] = {}
        # By the monotonic clock, from before the call to Redis, so that it never ends later than the lock.
        self._until_s: dict[str, float] = {}

    def hold(self, name: str) -> bool:
        """Renew the lock of this key, or take it if it is free. Returns False while another process has it.
        Raises redis.RedisError.
        """
        lock = self._locks.get(name)
        until_s = self._clock() + _LEASE_S
        if lock is not None:
            try:
                lock.extend(_LEASE_S, replace_ttl=True)
                self._until_s[name] = until_s
                return True
            except redis.exceptions.LockError:
                # It lapsed while this process was suspended; a process that has taken it keeps it.
                del self._locks[name]
        lock = self._client.lock(name, timeout=_LEASE_S, blocking=False, thread_local=False)
        if not lock.acquire(token=self._owner):
            shorten(self._client, name, _LEASE_S)
            return False
        self._locks[name] = lock
        self._until_s[name] = until_s
        return True

    def holds(self, name: str) -> bool:
        """Whether it certainly has this lock: it has renewed it recently, and nobody else can have taken it
        since.
        """
        return name in self._locks and self._clock() < self._until_s[name]

    def release_all(self) -> None:
        """Let another process lead at once. Raises redis.RedisError; then the locks lapse by themselves."""
        while self._locks:
            _, lock = self._locks.popitem()
            try:
                lock.release()
            except redis.exceptions.LockError:
                continue


class LeadersRounds:
    """Work that one process does for all: at once when it begins to lead, then once per `interval_ms`."""

    def __init__(
        self,
        leads: Callable[[], bool],
        work: Callable[[], None],
        *,
        interval_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._leads = leads
        self._work = work
        self._interval_s = interval_ms / 1000
        self._due_s = 0.0

    def step(self) -> bool:
        """A loop's step, to be called more often than the work is done."""
        if not self._leads():
            self._due_s = 0.0
        elif (now_s := self._clock()) >= self._due_s:
            self._work()
            self._due_s = now_s + self._interval_s
        return False
