"""The state of this process between start and end. It knows neither who asks nor how streams are ended."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0


def keep_running(name: str, run: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
    """A task for what lasts as long as the process. If it fails it is logged and begun again a second later:
    an error that nobody foresaw must not end it unnoticed.
    """

    async def again() -> None:
        while True:
            try:
                return await run()
            except Exception:
                log.exception("bug in a task that lasts as long as the process", extra={"task": name})
                await asyncio.sleep(_AGAIN_S)

    return asyncio.create_task(again(), name=name)


class Lifecycle:
    """The two steps of a shutdown. `begin_drain` (SIGTERM): the process is no longer ready, streams run on.
    `end_streams` (the drain's deadline): streams that still run end with an error of their own and settle.
    Both happen once, in the loop's thread; later calls do nothing. A callback must not block or raise.
    """

    def __init__(self) -> None:
        self.draining = False
        # Settles that neither Redis nor the journal took before the process had to end.
        self.settles_lost = 0
        self.deadline_passed = asyncio.Event()
        self._on_deadline: list[Callable[[], None]] = []

    def on_deadline(self, callback: Callable[[], None]) -> None:
        """Call `callback` when streams must end; at once if that time has passed."""
        if self.deadline_passed.is_set():
            callback()
        else:
            self._on_deadline.append(callback)

    def begin_drain(self) -> None:
        """Take no new work; running requests continue."""
        self.draining = True

    def end_streams(self) -> None:
        """The drain's deadline has passed: requests that still run must end."""
        self.begin_drain()
        if self.deadline_passed.is_set():
            return
        self.deadline_passed.set()
        for callback in self._on_deadline:
            callback()
