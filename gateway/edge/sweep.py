"""How long a caller may take, and the sweep that enforces it on every connection, so that a request sets no
timer. It knows no HTTP.
"""

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ListenLimits:
    """How long a caller may take, in seconds."""

    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 120.0
    write_stall_s: float = 30.0
    # Time for the caller to read our last answer, before what it still sends is answered with a reset.
    linger_s: float = 2.0


class Sweep:
    """Checks all connections of one server, several times within the shortest limit, while there are any."""

    def __init__(self, limits: ListenLimits) -> None:
        shortest_s = min(limits.head_s, limits.body_s, limits.idle_s, limits.write_stall_s, limits.linger_s)
        self._period_s = max(0.02, min(0.5, shortest_s / 4))
        self._scheduled = False

    def start(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        """Start the sweep, unless it is running."""
        if not self._scheduled:
            self._scheduled = True
            loop.call_later(self._period_s, self._look, loop, connections)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._scheduled = False
        now = loop.time()
        for connection in list(connections):
            connection.check(now)
        if connections:
            self.start(loop, connections)
