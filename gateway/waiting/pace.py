"""Grants slots again as soon as an engine has prefilled the prompt that holds up the next one: one timer per
cell, while requests wait there.

The cell says when (`pace_ms` of its replies). Any gateway that gets such a reply may do it; more than one
does no harm.
"""

import asyncio
from functools import partial
from typing import Any

from billing.cell.replies import parse_grant
from billing.cell.scripts import grant_call
from gateway.redis.pipe import RedisCommandError, RedisPipe, RedisUnavailable


class Pacer:
    """The timers of one process."""

    def __init__(self, redis: RedisPipe) -> None:
        self._redis = redis
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def schedule(self, cell: str, after_ms: int) -> None:
        """Grant this cell's free slots after so many ms; 0: no need. One timer at a time is enough."""
        if after_ms > 0 and cell not in self._timers:
            self._timers[cell] = asyncio.get_running_loop().call_later(after_ms / 1000, self._grant, cell)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _grant(self, cell: str) -> None:
        del self._timers[cell]
        self._redis.submit(*grant_call(cell, recount=False)).add_done_callback(partial(self._granted, cell))

    def _granted(self, cell: str, outcome: "asyncio.Future[Any]") -> None:
        try:
            self.schedule(cell, parse_grant(outcome.result()))
        except (RedisUnavailable, RedisCommandError, asyncio.CancelledError):
            return  # the allocator's next round grants too
