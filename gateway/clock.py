"""The time that this process writes into records: Redis's time as last read, advanced by the monotonic clock.
Pure except for reading that clock.

So a machine whose own clock is wrong or jumps cannot put a request at another price or into another month.
Before the first reply from Redis, it is this machine's clock, read once.
"""

import time


class Clock:
    """One a process."""

    def __init__(self) -> None:
        self._ahead_ms = time.time() * 1000 - time.monotonic() * 1000

    def set_redis_time(self, redis_ms: float) -> None:
        """Note the time that Redis has just given."""
        self._ahead_ms = redis_ms - time.monotonic() * 1000

    def at_ms(self, monotonic_s: float) -> int:
        """The time at this monotonic moment, in milliseconds since the epoch."""
        return int(monotonic_s * 1000 + self._ahead_ms)
