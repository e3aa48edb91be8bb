"""Where this process stands between start and end. Knows nothing of who asks or of how streams are ended."""

import asyncio
from collections.abc import Callable


class Lifecycle:
    """Two turning points of a shutdown.

    `begin_drain` (SIGTERM): readiness goes, streams run on. `end_streams` (the drain's deadline): whatever
    still runs ends now with an error of its own and settles. Both happen once and in the loop's thread; later
    calls do nothing. A callback must not block or raise.
    """

    def __init__(self) -> None:
        self.draining = False
        # Settles that neither Redis nor the journal took before the process had to end.
        self.settles_lost = 0
        self.deadline_passed = asyncio.Event()
        self._on_deadline: list[Callable[[], None]] = []

    def on_deadline(self, callback: Callable[[], None]) -> None:
        """Call `callback` when streams must end; at once if that time has come."""
        if self.deadline_passed.is_set():
            callback()
        else:
            self._on_deadline.append(callback)

    def begin_drain(self) -> None:
        """Take no new work; what runs, runs on."""
        self.draining = True

    def end_streams(self) -> None:
        """The drain's deadline: what still runs must end."""
        self.begin_drain()
        if self.deadline_passed.is_set():
            return
        self.deadline_passed.set()
        for callback in self._on_deadline:
            callback()
