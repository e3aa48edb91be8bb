"""Settles that Redis has answered and may not have on its disk yet. It owns them until Redis says that they
are safe; after a lost connection, the journal does, which sends them again.

With `appendfsync everysec` a killed Redis loses what it answered while an fsync ran, because it writes that
up to two seconds later; a crash of its machine may lose the last second or two in any case. About once a
second a marker is written on a connection of its own, followed by WAITAOF, or by WAIT where there is no
append-only file but a replica. If Redis can promise neither, nothing is kept and `promised` is false. Sending
again is harmless: a settle is idempotent by request id.
"""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any, Final

from billing.cell.scripts import Command
from billing.wire import redis_keys
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisCommandError, RedisPipe, RedisUnavailable

KEPT_MAX: Final = 20_000
ROUND_S: Final = 1.0
# A confirmed marker covers what was answered this long before it was sent. Redis 7.4 and Valkey confirm
# WAITAOF at once if no fsync runs, even if the last write is not synced yet (redis/redis#13793). The fsync of
# a write begins within a second.
LAG_S: Final = 2.0
# Without a confirmation for this long, Redis is taken to promise nothing.
GIVE_UP_S: Final = 10.0
WAIT_MS: Final = 1_500
_MARKER_TTL_S: Final = 60


class UnsyncedSettles:
    """Those of one process. `markers` is a pipe of its own, because WAITAOF blocks its connection."""

    def __init__(
        self,
        *,
        redis: RedisPipe,
        markers: RedisPipe,
        journal: Journal,
        gateway_id: str,
        kept_max: int = KEPT_MAX,
    ) -> None:
        self._redis = redis
        self._markers = markers
        self._journal = journal
        self._marker: Final = ("SET", redis_keys.sync_marker(gateway_id), 1, "EX", _MARKER_TTL_S)
        self._kept_max = kept_max
        # When each was answered, oldest first.
        self._kept: deque[tuple[float, Command]] = deque()
        self._failing_since: float | None = None
        self.promised = True
        self._checked = False
        redis.on_lost = markers.on_lost = self.send_again

    @property
    def kept(self) -> int:
        """How many settles are kept."""
        return len(self._kept)

    def keep(self, call: Command) -> None:
        """Redis has answered this. Past the cap the oldest goes to the journal."""
        if not self.promised:
            return
        self._kept.append((time.monotonic(), call))
        if len(self._kept) > self._kept_max:
            self._journal.append(self._kept.popleft()[1])

    def send_again(self) -> None:
        """A connection was lost, perhaps with Redis's last writes: the journal sends everything again."""
        while self._kept:
            self._journal.append(self._kept.popleft()[1])

    async def execute(self, *command: Any) -> Any:
        """For the journal: send a command, and keep it. Refuses while Redis's disk is too far behind, because
        what is kept past the cap would go round in circles.
        """
        if len(self._kept) >= self._kept_max:
            raise RedisUnavailable("its disk is behind", unknown_outcome=False)
        reply = await self._redis.execute(*command)
        self.keep(command)
        return reply

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            if self._kept or not self._checked or not self.promised:
                await self.confirm()
            await asyncio.sleep(ROUND_S)

    async def confirm(self) -> None:
        """One round: forget what is safe."""
        sent_at = time.monotonic()
        try:
            safe = await self._marker_is_safe()
        except RedisCommandError:
            safe = False
        except RedisUnavailable:
            if not self._markers.healthy:
                self._failing_since = None  # it is away, and everything kept is in the journal
                return
            safe = False  # it does not permit the commands
        self._checked = True
        if safe:
            self.promised, self._failing_since = True, None
            while self._kept and self._kept[0][0] <= sent_at - LAG_S:
                self._kept.popleft()
        elif self._failing_since is None:
            self._failing_since = sent_at
        elif sent_at - self._failing_since >= GIVE_UP_S:
            self.promised = False
            self._kept.clear()

    async def _marker_is_safe(self) -> bool:
        """Whether a marker written now is on Redis's disk or in a replica soon."""
        try:
            _, (synced, _) = await self._markers.execute_many([self._marker, ("WAITAOF", 1, 0, WAIT_MS)])
            return bool(synced)
        except RedisCommandError:  # no append-only file, or an older server
            _, replicas = await self._markers.execute_many([self._marker, ("WAIT", 1, WAIT_MS)])
            return bool(replicas)

    async def close(self) -> None:
        """Wait until everything is safe, for as long as that usually takes; the journal gets the rest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * LAG_S):
                while self._kept and self.promised and self._redis.healthy:
                    await asyncio.sleep(max(0.05, self._kept[-1][0] + LAG_S - time.monotonic()))
                    await self.confirm()
        self.send_again()
