"""Which process does what only one may do: a lock each, taken by whoever comes first and renewed while it lives. Owns the locks only."""

from typing import Final

import redis
from redis.lock import Lock

# A leader renews it every second; one that is gone is replaced within this.
_LEASE_S: Final = 3.0


def shorten(client: redis.Redis, name: str, lease_s: float) -> None:
    """Let another process's lock lapse within its lease, where it would hold for longer because Redis's clock went back. Raises redis.RedisError."""
    client.pexpire(name, int(lease_s * 1000), lt=True)


class Leadership:
    """What one process leads; it is named `owner`, or at random."""

    def __init__(self, client: redis.Redis, owner: str | None = None) -> None:
        self._client = client
        self._owner = owner
        self._locks: dict[str, Lock] = {}

    def hold(self, name: str) -> bool:
        """Renew the lock of this key, or take it where nobody has it. False while another process has it. Raises redis.RedisError."""
        lock = self._locks.get(name)
        if lock is not None:
            try:
                lock.extend(_LEASE_S, replace_ttl=True)
                return True
            except redis.exceptions.LockError:
                # It lapsed while this process stood still: whoever has it by now keeps it.
                del self._locks[name]
        lock = self._client.lock(name, timeout=_LEASE_S, blocking=False, thread_local=False)
        if not lock.acquire(token=self._owner):
            shorten(self._client, name, _LEASE_S)
            return False
        self._locks[name] = lock
        return True

    def holds(self, name: str) -> bool:
        """Whether it held this lock when it last asked."""
        return name in self._locks

    def release_all(self) -> None:
        """Let another process lead at once. Raises redis.RedisError; then the locks lapse by themselves."""
        while self._locks:
            _, lock = self._locks.popitem()
            try:
                lock.release()
            except redis.exceptions.LockError:
                continue
