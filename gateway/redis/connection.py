"""One connection to Redis. The commands of one loop tick leave in one write; replies come back in order.

It knows RESP and time, not what commands mean, and it does not reconnect. When it ends, every waiting call
gets `RedisUnavailable`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis

from billing.wire.redis_server import why_refused

# Beyond this a server counts as gone and not as slow; else memory would grow and callers would wait.
OUTSTANDING_MAX: Final = 100_000
# Errors of a server that cannot serve now. The command was not run.
_UNAVAILABLE_CODES: Final = frozenset(
    {
        "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOREPLICAS", "NOPERM",
        "OOM", "READONLY", "TRYAGAIN", "WRONGPASS",
    }
)  # fmt: skip
_INCOMPLETE: Final = object()
_NO_FUNCTION: Final = "ERR Function not found"
# The command before the text. A server that already has the scripts refuses it, which is as good.
LOAD_SCRIPTS: Final = ("FUNCTION", "LOAD")


class RedisUnavailable(Exception):
    """Redis could not serve the call. `unknown_outcome`: the command may have run, so repeat it only if that
    is harmless.
    """

    def __init__(self, reason: str, *, unknown_outcome: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unknown_outcome = unknown_outcome


class RedisCommandError(Exception):
    """Redis refused a command for its content: a bug of the caller, not an outage."""


class RedisConnection(asyncio.Protocol):
    """The protocol. `scripts`: the library to load into a server that does not know the function that is
    called.
    """

    __slots__ = (
        "_excused_s", "_flush_scheduled", "_loop", "_out", "_outstanding", "_reader", "_scripts",
        "_timeout_s", "_timer", "_transport", "closed", "on_denied", "readonly_seen",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, scripts: str | None) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._scripts = scripts
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._out: list[bytes] = []
        self._flush_scheduled = False
        # When the call was sent that was given more time last.
        self._excused_s = 0.0
        # The caller's future, the command to repeat should its script be missing, when it was sent.
        self._outstanding: deque[tuple[asyncio.Future[Any] | None, tuple[Any, ...] | None, float]] = deque()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.readonly_seen = False
        # Called when the server does not permit a command, which an operator must fix.
        self.on_denied: Callable[[str], None] | None = None

    def send(self, future: asyncio.Future[Any], command: tuple[Any, ...]) -> None:
        """Send with the other commands of this tick. `future` gets the reply or an error."""
        if len(self._outstanding) >= OUTSTANDING_MAX:
            future.set_exception(RedisUnavailable("overloaded", unknown_outcome=False))
            return
        self._enqueue(future, command, command if command[0] == "FCALL" else None)

    @property
    def open(self) -> bool:
        """Whether a command may be sent."""
        return self._transport is not None

    def abort(self, reason: str) -> None:
        """Close at once, with an error for every waiting call."""
        transport, self._transport = self._transport, None
        self._fail_outstanding(reason)
        if transport is not None:
            transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports behave like asyncio's but have no common class.
        self._transport = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(self._timeout_s / 4, self._check_oldest)

    def data_received(self, data: bytes) -> None:
        reader, outstanding = self._reader, self._outstanding
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                future, command, _ = outstanding.popleft()
                if isinstance(reply, hiredis.ReplyError):
                    self._refused(future, command, str(reply))
                elif future is not None and not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort("protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._fail_outstanding("connection lost")
        if not self.closed.done():
            self.closed.set_result(None)

    # Inside

    def _enqueue(
        self, future: asyncio.Future[Any] | None, command: tuple[Any, ...], repeatable: tuple[Any, ...] | None
    ) -> None:
        self._out.append(hiredis.pack_command(command))
        self._outstanding.append((future, repeatable, self._loop.time()))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._out and self._transport is not None:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def _refused(
        self, future: asyncio.Future[Any] | None, command: tuple[Any, ...] | None, message: str
    ) -> None:
        code = message.partition(" ")[0]
        if message == _NO_FUNCTION and command is not None and self._scripts is not None:
            self._enqueue(None, (*LOAD_SCRIPTS, self._scripts), None)
            self._enqueue(future, command, None)
            return
        if code == "READONLY":
            self.readonly_seen = True
            self._loop.call_soon(self.abort, "readonly")
        reason = why_refused(message) or code.lower()
        if code == "NOPERM" and self.on_denied is not None:
            self.on_denied(reason)
        if future is None or future.done():
            return
        if code in _UNAVAILABLE_CODES:
            future.set_exception(RedisUnavailable(reason, unknown_outcome=False))
        else:
            future.set_exception(RedisCommandError(message))

    def _check_oldest(self) -> None:
        now_s, between_s = self._loop.time(), self._timeout_s / 4
        if self._outstanding and now_s - (sent_s := self._outstanding[0][2]) > self._timeout_s:
            # A late tick says that this process did not run, not that the server is slow: what was to be
            # sent, or has come, has its turn first. Once for a call, else a busy process would wait for ever.
            late = self._timer is not None and now_s - self._timer.when() >= between_s
            if not late or sent_s == self._excused_s:
                self.abort("timeout")
                return
            self._excused_s = sent_s
        self._timer = self._loop.call_later(between_s, self._check_oldest)

    def _fail_outstanding(self, reason: str) -> None:
        unsent = len(self._out)
        self._out.clear()
        for position in range(len(self._outstanding), 0, -1):
            future, _, _ = self._outstanding.popleft()
            if future is not None and not future.done():
                future.set_exception(RedisUnavailable(reason, unknown_outcome=position > unsent))
