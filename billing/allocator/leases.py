"""Which cells this process allocates: the busy ones, divided evenly among the billing processes that are
alive.

It owns a process's lease and the cells under it. One call a second renews the lease for all cells. The cells
of a dead process are free when its lease lapses; a process that joins gets its part from those that have
more.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from billing.wire import redis_keys

# Renewed every second: a dead process is replaced within this time.
_LEASE_MS: Final = 3_000


class CellLeases:
    """One per process, named `owner`. The client must not decode responses."""

    def __init__(self, client: redis.Redis, owner: str) -> None:
        self._owner = owner
        self._share = client.register_script((Path(__file__).parent / "lua" / "share_cells.lua").read_text())

    def share(self, busy: Iterable[str], pinned: Collection[str] = ()) -> list[str]:
        """Renew the lease, and return which busy cells this process holds now. `pinned` ones are kept,
        because a round works on them. Raises redis.RedisError.
        """
        others = [cell for cell in busy if cell not in pinned]
        return sorted(self._call(_LEASE_MS, [*sorted(pinned), *others], len(pinned)))

    def leave(self) -> None:
        """Give the cells up at once. Raises redis.RedisError; then the lease lapses by itself."""
        self._call(0, (), 0)

    def _call(self, lease_ms: int, cells: Sequence[str], pinned: int) -> list[str]:
        keys = [redis_keys.ALLOCATORS, redis_keys.ALLOCATORS_ALIVE]
        reply: Any = self._share(keys=keys, args=[self._owner, lease_ms, pinned, *cells])
        return [cell.decode() if isinstance(cell, bytes) else cell for cell in reply]
