"""A caller's connection as bytes: backpressure both ways, a caller that does not read, and the ways to close.
It knows no HTTP.
"""

import asyncio
from collections.abc import Callable

# Unread request bytes above which reading pauses.
READ_BYTES_MAX = 64 * 1024


class Wire:
    """Wraps a transport. `closing`: no more will be written. `lost`: the connection is closed."""

    __slots__ = (
        "_loop", "_on_drained", "_waiters", "_write_bytes", "closing", "closing_since", "lingering", "lost",
        "paused_since", "read_paused", "stalled", "transport", "write_paused",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = transport
        self._loop = loop
        self.read_paused = False
        self.write_paused = False
        self.paused_since = 0.0
        self._write_bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._on_drained: Callable[[], None] | None = None
        self.closing = False
        self.closing_since = 0.0
        self.lingering = False
        self.lost = False
        # The connection was closed because the caller did not read, and not by the caller.
        self.stalled = False

    def pause_reading(self) -> None:
        """Stop reading, so that the kernel's buffers fill and the caller waits (backpressure)."""
        if not self.read_paused and not self.closing:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self.read_paused and not self.lost:
            self.read_paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The transport holds more than its high-water mark."""
        self.write_paused = True
        self.paused_since = self._loop.time()
        self._write_bytes = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        """The transport has fallen below its low-water mark, or there is nothing to wait for any more."""
        self.write_paused = False
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        callback, self._on_drained = self._on_drained, None
        if callback is not None:
            callback()

    def on_drained(self, callback: Callable[[], None]) -> None:
        """Call back once when `drain` would return. Only the last callback is kept."""
        self._on_drained = callback

    async def drain(self) -> None:
        """Wait until writing is possible, or the connection is closed. `check` closes the connection of a
        caller that never reads, so this ends.
        """
        while self.write_paused and not self.lost:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def stalled_ms(self) -> float:
        """For how long the caller has read nothing of what waits for it."""
        return (self._loop.time() - self.paused_since) * 1000 if self.write_paused else 0.0

    def check(self, now: float, stall_s: float, linger_s: float) -> None:
        """Close the connection if nothing has moved for too long. A caller that reads slowly makes progress;
        one that has stopped does not.
        """
        if not self.write_paused and not self.closing:
            return
        if self.lingering:
            if now - self.closing_since > linger_s:
                self.transport.abort()
            return
        write_bytes = self.transport.get_write_buffer_size()
        if write_bytes < self._write_bytes:
            self.paused_since = self.closing_since = now
        self._write_bytes = write_bytes
        if now - (self.closing_since if self.closing else self.paused_since) > stall_s:
            self.stalled = True
            self.transport.abort()

    def close(self, *, linger: bool = False) -> None:
        """Close once everything is written. `linger`: the caller may still be sending. If both sides closed
        at once the kernel would answer that with a reset, which destroys what the caller has not read yet. So
        only our side is closed, and what arrives is dropped until the caller closes or `check` closes the
        connection.
        """
        if self.closing:
            return
        self.closing = True
        self.closing_since = self._loop.time()
        self._write_bytes = self.transport.get_write_buffer_size()
        if linger and self.transport.can_write_eof():
            self.resume_reading()
            self.lingering = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Close now; what is not written is lost."""
        self.closing = True
        self.closing_since = self._loop.time()
        self.transport.abort()
