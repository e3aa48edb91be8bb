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

    def heard(self, redis_ms: float) -> None:
        """What Redis says that it is now."""
        self._ahead_ms = redis_ms - time.monotonic() * 1000

    def at_ms(self, monotonic_s: float) -> int:
        """That moment in milliseconds since the epoch."""
        return int(monotonic_s * 1000 + self._ahead_ms)
