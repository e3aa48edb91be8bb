"""The engines that this process talks to: a connection pool for each instance, its open requests, and how to
stop a request by its id.

It knows addresses and failures, no tokens and no callers.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path

from billing.wire.certificates import checked_by
from billing.wire.engine_kinds import key_headers
from billing.wire.instance_entry import InstanceEntry
from gateway.upstream.adapters import adapter_of
from gateway.upstream.attempt import Attempt
from gateway.upstream.breaker import Breakers
from gateway.upstream.connection import UpstreamError, UpstreamFailure, UpstreamPool
from gateway.upstream.engine_adapter import EngineCall
from gateway.upstream.progress import Progress

log = logging.getLogger(__name__)

# An abort that arrives before the engine has admitted the request is lost, so it is repeated until the answer
# ends.
ABORT_SECONDS_MAX = 5.0
_ABORT_ANSWER_BYTES_MAX = 64 * 1024
ABORT_REPEAT_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0)


class Engines:
    """Pools by instance. If an instance's address or key changes it gets a new pool."""

    def __init__(
        self,
        connect_timeout_s: float,
        ca_file: Path | None = None,
        on_breaker: Callable[[str, bool], None] = lambda _instance, _open: None,
        *,
        read_on_s: float = 0.0,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._read_on_s = read_on_s
        # Answers that nobody waits for, and when each is given up.
        self._abandoned: dict[Attempt, asyncio.TimerHandle] = {}
        # Read now if the operator has named some, so that a bad file stops the start.
        self._trusted = checked_by(ca_file=ca_file) if ca_file is not None else None
        self._pools: dict[str, tuple[str, str | None, UpstreamPool]] = {}
        self.open_here: dict[str, int] = {}
        self.breakers = Breakers(on_breaker)
        self.progress = Progress()
        self._aborts: set[asyncio.Task[None]] = set()

    def pool(self, instance: InstanceEntry) -> UpstreamPool:
        """The pool for this instance's current address."""
        known = self._pools.get(instance.instance)
        if known is not None and known[0] == instance.url and known[1] == instance.key:
            return known[2]
        if known is not None:
            known[2].close()
        headers = key_headers(instance.engine, instance.key)
        pool = UpstreamPool(instance.url, headers, self._connect_timeout_s, self._trusted)
        self._pools[instance.instance] = (instance.url, instance.key, pool)
        return pool

    def keep(self, known: Collection[str]) -> None:
        """Forget all instances but these and those that have requests open."""
        for name in [name for name in self._pools if name not in known and not self.open_here.get(name)]:
            self._pools.pop(name)[2].close()
            self.open_here.pop(name, None)
            self.breakers.forget(name)
            self.progress.forget(name)

    def opened(self, instance: InstanceEntry) -> None:
        """Count a request that goes there."""
        self.open_here[instance.instance] = self.open_here.get(instance.instance, 0) + 1

    def closed(self, instance: InstanceEntry) -> None:
        """Count a request that has ended there."""
        self.open_here[instance.instance] -= 1

    def abort(self, attempt: Attempt) -> None:
        """Make the engine stop a request: by id if it can (its answer then ends with the exact usage), else
        by closing the connection.
        """
        if attempt.connection is None:
            return
        attempt.connection.resume()  # its caller may not read, but the end has to come
        if not attempt.instance.abort:
            attempt.connection.close()
            return
        task = asyncio.create_task(self._abort_by_id(attempt), name="abort")
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    def read_on(self, attempt: Attempt) -> None:
        """Read an answer that nobody waits for to its end, where it says what it cost, but not for longer
        than `read_on_s`.
        """
        if attempt.connection is not None and attempt not in self._abandoned:
            attempt.connection.resume()
            later = asyncio.get_running_loop().call_later
            self._abandoned[attempt] = later(self._read_on_s, attempt.connection.close)

    def forget(self, attempt: Attempt) -> None:
        """No more of its answer is read."""
        if (timer := self._abandoned.pop(attempt, None)) is not None:
            timer.cancel()

    def end_abandoned(self) -> None:
        """The process is ending: give up the answers that nobody waits for."""
        for attempt in self._abandoned:
            if attempt.connection is not None:
                attempt.connection.close()

    async def _abort_by_id(self, attempt: Attempt) -> None:
        connection = attempt.connection
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS_MAX):
                await self._abort_until_finished(attempt)
        if attempt.over:
            return
        log.warning("engine did not stop a request by id", extra={"request_id": attempt.request_id})
        if connection is not None:
            connection.close()

    async def _abort_until_finished(self, attempt: Attempt) -> None:
        call = adapter_of(attempt.instance).abort(attempt.parsed, attempt.request_id)
        for pause_s in ABORT_REPEAT_SECONDS:
            with contextlib.suppress(UpstreamError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.ask(attempt.instance, call, bytes_max=_ABORT_ANSWER_BYTES_MAX)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await attempt.until_over()
            if attempt.over:
                return

    async def ask(self, instance: InstanceEntry, call: EngineCall, *, bytes_max: int) -> tuple[int, bytes]:
        """Send one small POST beside the requests; returns status and body. Raises UpstreamError, also for an
        answer of more than `bytes_max`.
        """
        pool = self.pool(instance)
        connection, _ = await pool.acquire()
        answer = bytearray()

        def take(piece: bytes) -> bool:
            answer.extend(piece)
            if len(answer) > bytes_max:
                raise UpstreamError(UpstreamFailure.PROTOCOL)
            return False

        try:
            connection.send(pool.request_bytes(call.path, call.headers, call.body))
            status = await connection.head()
            await connection.read(take)
        except BaseException:
            connection.close()
            raise
        pool.release(connection)
        return status, bytes(answer)

    def close(self) -> None:
        """Close all idle connections."""
        for _, _, pool in self._pools.values():
            pool.close()
