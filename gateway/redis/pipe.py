"""The gateway's Redis client: one connection per process, kept up, shared by the calls of many requests.

It is our own code because it is the hot path (docs/decisions/002). Calls made during a connection attempt
wait for that attempt. If it fails, calls fail at once until a later attempt succeeds. Nothing is repeated
automatically, except a script that the server lost.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from billing.cell.scripts import library
from billing.wire.cancellation import end_tasks
from billing.wire.redis_address import parse_redis_url
from billing.wire.redis_server import read_hello, why_unusable
from gateway.redis.connection import LOAD_SCRIPTS, RedisCommandError, RedisConnection, RedisUnavailable

__all__ = ["RedisCommandError", "RedisPipe", "RedisUnavailable"]

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_LONGEST_S: Final = 1.0
# How many different refusals of commands are logged.
_DENIALS_MAX: Final = 20
_HELLO: Final = ("HELLO",)


class RedisPipe:
    """`await execute("GET", key)`. It connects at the first call, and again whenever the connection is lost,
    until `close`. `timeout_s`: how long the oldest call may wait; then the connection is closed and every
    call on it fails. A command that blocks in Redis needs a pipe of its own, since all other replies would
    wait behind it. Replies are bytes, integers, None and lists. `log_outages`: log each change of `failure`;
    of several pipes to one server, one should.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 1.0,
        scripts: bool = True,
        log_outages: bool = False,
    ) -> None:
        self._address = parse_redis_url(url)
        self._tls = None if self._address.tls is None else self._address.tls.context()
        self._log_outages = log_outages
        self._outage_logged: str | None = None
        self._denials_logged: set[str] = set()
        self._timeout_s = timeout_s
        self._scripts = library().text if scripts else None
        self._connection: RedisConnection | None = None
        self._connector: asyncio.Task[None] | None = None
        self._waiting: list[tuple[asyncio.Future[Any], tuple[Any, ...]]] = []
        self._failure: str | None = None
        self._healthy = asyncio.Event()
        self._closed = False
        # Called when a connection that has answered was lost, after its last replies and before the next one.
        self.on_lost: Callable[[], None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether there is a connection that has answered."""
        return self._connection is not None and self._connection.open

    @property
    def failure(self) -> str | None:
        """Why the last attempt to connect failed, for an operator; None while there is a connection, and
        before the first attempt.
        """
        return self._failure

    async def wait_healthy(self) -> None:
        """Wait until there is a connection that has answered."""
        self._start()
        await self._healthy.wait()

    def submit(self, *command: Any) -> "asyncio.Future[Any]":
        """Send a command now; the future gets its reply. Raises only TypeError, for an argument that is
        neither text nor number.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._connection is not None and self._connection.open:
            self._connection.send(future, command)
        elif self._closed or self._failure is not None:
            future.set_exception(RedisUnavailable(self._failure or "closed", unknown_outcome=False))
        else:
            # An argument that cannot be sent is an error of this caller now, not of the connector later.
            hiredis.pack_command(command)
            self._waiting.append((future, command))
            self._start()
        return future

    def send(self, *command: Any) -> None:
        """Send a command whose reply nobody needs. It may be lost."""
        self.submit(*command).add_done_callback(_consume_outcome)

    async def execute(self, *command: Any) -> Any:
        """The reply to a command. Raises RedisUnavailable or RedisCommandError."""
        return await self.submit(*command)

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies of all, in order, in one round trip. Every command is sent; the first error is
        raised after all have ended.
        """
        futures = [self.submit(*command) for command in commands]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    async def close(self) -> None:
        """Wait for the replies to what was sent, as long as one call may take, then close for good."""
        connection = self._connection
        if connection is not None and connection.open:
            with contextlib.suppress(RedisUnavailable):
                # Replies come in order: after this one there is none left.
                await self.submit("PING")
            self._closed = True
            connection.abort("closed")
            await connection.closed
        self._closed = True
        if self._connector is not None:
            await end_tasks(self._connector)
        self._fail_waiting("closed")

    # The connection's life

    def _start(self) -> None:
        if self._connector is None and not self._closed:
            self._connector = asyncio.create_task(self._keep_connected(), name="redis-connector")

    async def _keep_connected(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._closed:
            try:
                connection = await self._connect()
            except (OSError, UnicodeError, RedisUnavailable, RedisCommandError) as exc:
                self._failure = str(exc) if isinstance(exc, RedisUnavailable) else f"cannot connect: {exc}"
                self._fail_waiting(self._failure)
                self._log_outage(self._failure)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311
                backoff_s = min(backoff_s * 2, BACKOFF_LONGEST_S)
                continue
            backoff_s = BACKOFF_FIRST_S
            self._connection, self._failure = connection, None
            self._log_outage(None)
            self._healthy.set()
            for future, command in self._waiting:
                if not future.done():
                    connection.send(future, command)
            self._waiting.clear()
            await connection.closed
            self._connection = None
            self._healthy.clear()
            if self.on_lost is not None and not self._closed:
                self.on_lost()
            if connection.readonly_seen:
                # A replica, perhaps after a failover: try again, without hurry.
                self._failure = "readonly"
                await asyncio.sleep(BACKOFF_LONGEST_S)

    async def _connect(self) -> RedisConnection:
        loop, address = asyncio.get_running_loop(), self._address
        connection = RedisConnection(loop, self._timeout_s, self._scripts)
        connection.on_denied = self._log_denial
        try:
            async with asyncio.timeout(self._timeout_s):
                if address.unix_path is not None:
                    await loop.create_unix_connection(lambda: connection, address.unix_path)
                else:
                    await loop.create_connection(
                        lambda: connection, address.host, address.port, ssl=self._tls
                    )
                await self._greet(connection)
        except TimeoutError as exc:
            connection.abort("timeout")
            raise RedisUnavailable("timeout", unknown_outcome=False) from exc
        except BaseException:
            connection.abort("connection lost")
            raise
        return connection

    async def _greet(self, connection: RedisConnection) -> None:
        address = self._address
        greeting: list[tuple[str, ...]] = [_HELLO, ("PING",)]
        if address.password is not None:
            login = (address.password,) if address.username is None else (address.username, address.password)
            greeting.insert(0, ("AUTH", *login))
        if address.database:
            greeting.append(("SELECT", str(address.database)))
        if self._scripts is not None:
            greeting.append((*LOAD_SCRIPTS, self._scripts))
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in greeting]
        for future, command in zip(futures, greeting, strict=True):
            connection.send(future, command)
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for command, outcome in zip(greeting, outcomes, strict=True):
            if command is _HELLO and isinstance(outcome, RedisCommandError):
                continue  # a proxy that does not know it
            if command[:2] == LOAD_SCRIPTS:
                continue  # it has them, or accepts none now; a call that misses them loads them
            if isinstance(outcome, BaseException):
                raise outcome
            if command is _HELLO and (why := why_unusable(read_hello(outcome))):
                raise RedisUnavailable(why, unknown_outcome=False)

    def _log_outage(self, why: str | None) -> None:
        """Log each change once."""
        before, self._outage_logged = self._outage_logged, why
        if not self._log_outages or why == before:
            return
        if why is None:
            log.warning("Redis can be used again", extra={"redis": str(self._address)})
        else:
            log.error("Redis cannot be used", extra={"redis": str(self._address), "reason": why})

    def _log_denial(self, reason: str) -> None:
        if reason not in self._denials_logged and len(self._denials_logged) < _DENIALS_MAX:
            self._denials_logged.add(reason)
            log.error("Redis refuses a command", extra={"redis": str(self._address), "reason": reason})

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for future, _ in waiting:
            if not future.done():
                future.set_exception(RedisUnavailable(reason, unknown_outcome=False))


def _consume_outcome(outcome: "asyncio.Future[Any]") -> None:
    """Read the outcome, so that asyncio does not report an exception that nobody retrieved."""
    if not outcome.cancelled():
        outcome.exception()
