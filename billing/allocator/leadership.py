"""Which process allocates which cell: a lock a cell, taken by whoever comes first and renewed while it lives. Owns the locks only."""

from typing import Final

import redis
from redis.lock import Lock

from billing import redis_keys

# A leader renews it every second; one that is gone is replaced within this.
_LEASE_S: Final = 3.0


class Leadership:
    """The cells that one allocator, named `owner`, leads."""

    def __init__(self, client: redis.Redis, owner: str) -> None:
        self._client = client
        self._owner = owner
        self._locks: dict[str, Lock] = {}

    def hold(self, cell: str) -> bool:
        """Renew it, or take it where nobody has it. False while another allocator has it. Raises redis.RedisError."""
        lock = self._locks.get(cell)
        if lock is not None:
            try:
                lock.extend(_LEASE_S, replace_ttl=True)
                return True
            except redis.exceptions.LockError:
                # It lapsed while this process stood still: whoever has it by now keeps it.
                del self._locks[cell]
        lock = self._client.lock(redis_keys.allocator_lock(cell), timeout=_LEASE_S, blocking=False, thread_local=False)
        if not lock.acquire(token=self._owner):
            return False
        self._locks[cell] = lock
        return True

    def release_all(self) -> None:
        """Let another process lead at once. Raises redis.RedisError; then the locks lapse by themselves."""
        while self._locks:
            _, lock = self._locks.popitem()
            try:
                lock.release()
            except redis.exceptions.LockError:
                continue
