"""One cell's usage stream as the consumer group `billing` sees it. Owns reading, claiming and acknowledging; reads no event's content.

Every reader here may hand out an entry that another reader has too: recording is idempotent, losing one is not.
"""

from dataclasses import dataclass
from typing import Any, Final

import redis

from billing import redis_keys

# An entry this old that is still in the stream was missed by its consumer and by those who claim (a group that was lost or made
# anew too late, a consumer deleted with entries): it is read directly.
_STRANDED_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry. `raw` is None where it was deleted after it had been delivered: another consumer has recorded it."""

    cell: str
    entry_id: str
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class StreamLag:
    """What a stream still holds, and how old its oldest entry is."""

    entries: int
    oldest_age_ms: int


def read_cells(client: redis.Redis) -> list[str]:
    """The names of all cells."""
    names: Any = client.smembers(redis_keys.CELLS)
    return sorted(name.decode() for name in names)


class UsageStream:
    """The stream of one cell, read as one consumer. The client must not decode responses."""

    def __init__(self, client: redis.Redis, cell: str, consumer: str) -> None:
        self.cell = cell
        self._client = client
        self._consumer = consumer
        self._key = redis_keys.usage_stream(cell)

    def ensure_group(self) -> None:
        """Create stream and group where they are not there; from the beginning, so that nothing written earlier is missed."""
        try:
            self._client.xgroup_create(self._key, redis_keys.USAGE_GROUP, id="0", mkstream=True)
        except redis.ResponseError as exc:
            if "BUSYGROUP" not in str(exc):
                raise

    def read_new(self, count: int) -> list[StreamEntry]:
        """Entries that no consumer has had yet; they are this consumer's then."""
        return self._read(">", count)

    def read_own(self, count: int) -> list[StreamEntry]:
        """Entries that this consumer has had and not acknowledged."""
        return self._read("0", count)

    def claim(self, idle_ms: int, count: int) -> list[StreamEntry]:
        """Take over what another consumer has held for so long that it must be dead."""
        reply: Any = self._client.xautoclaim(
            self._key, redis_keys.USAGE_GROUP, self._consumer, min_idle_time=idle_ms, count=count
        )
        return self._entries(reply[1])

    def stranded(self, count: int) -> list[StreamEntry]:
        """Entries older than any consumer should leave them, whatever the group says."""
        now_s, _ = self._client.time()
        reply: Any = self._client.xrange(self._key, "-", str(int(now_s) * 1000 - _STRANDED_MS), count=count)
        return self._entries(reply)

    def acknowledge(self, entries: list[StreamEntry]) -> None:
        """SQL has them: acknowledge and delete in one step."""
        if not entries:
            return
        ids = [entry.entry_id for entry in entries]
        with self._client.pipeline(transaction=True) as both:
            both.xack(self._key, redis_keys.USAGE_GROUP, *ids)
            both.xdel(self._key, *ids)
            both.execute()

    def lag(self) -> StreamLag:
        """Read with the server's clock."""
        with self._client.pipeline(transaction=False) as read:
            read.time()
            read.xlen(self._key)
            read.xrange(self._key, "-", "+", count=1)
            (now_s, now_us), entries, oldest = read.execute()
        if not oldest:
            return StreamLag(entries, 0)
        oldest_ms = int(oldest[0][0].split(b"-")[0])
        return StreamLag(entries, max(0, int(now_s) * 1000 + int(now_us) // 1000 - oldest_ms))

    def _read(self, after: str, count: int) -> list[StreamEntry]:
        reply: Any = self._client.xreadgroup(redis_keys.USAGE_GROUP, self._consumer, {self._key: after}, count=count)
        return self._entries(reply[0][1]) if reply else []

    def _entries(self, reply: list[tuple[bytes, dict[bytes, bytes]]]) -> list[StreamEntry]:
        return [StreamEntry(self.cell, entry_id.decode(), _raw(fields)) for entry_id, fields in reply]


def _raw(fields: dict[bytes, bytes]) -> bytes | None:
    if not fields:
        return None
    # Without the usage field it is not an event; what there is instead is handed on, to be rejected as it stands.
    return fields.get(redis_keys.USAGE_FIELD.encode(), repr(fields).encode())
