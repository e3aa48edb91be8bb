"""The cells' usage streams as the consumer group `billing` sees them. It reads, claims and acknowledges
entries; it does not read an event's content.

Each method serves many cells in one round trip. A reader may return an entry that another reader has too:
recording is idempotent, and losing an entry would not be.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from billing.wire import redis_clock, redis_keys

# An entry this old that is still in the stream was missed by its consumer and by those who claim (a group
# that was lost or made anew too late, a consumer deleted with entries): it is read directly.
_STRANDED_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry. `raw` None: it was deleted after its delivery, because another consumer has recorded it."""

    cell: str
    entry_id: str
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class StreamLag:
    """How many entries a stream holds, and the age of the oldest."""

    entries: int
    oldest_age_ms: int


NO_LAG: Final = StreamLag(0, 0)


class UsageStreams:
    """The streams of any cells, read as one consumer. The client must not decode responses."""

    def __init__(self, client: redis.Redis, consumer: str) -> None:
        self._client = client
        self._consumer = consumer

    def ensure_groups(self, cells: Iterable[str]) -> None:
        """Create streams and groups where they are not there; from the beginning, so that nothing written
        earlier is missed.
        """
        with self._client.pipeline(transaction=False) as pipe:
            for cell in cells:
                pipe.xgroup_create(
                    redis_keys.usage_stream(cell), redis_keys.USAGE_GROUP, id="0", mkstream=True
                )
            for reply in pipe.execute(raise_on_error=False):
                if isinstance(reply, Exception) and "BUSYGROUP" not in str(reply):
                    raise reply

    def read_new(
        self, cells: Collection[str], count: int, *, block_ms: int | None = None
    ) -> list[StreamEntry]:
        """Entries that no consumer has had yet, at most `count` of each cell; they are this consumer's then.

        With `block_ms` it waits so long for one to come.
        """
        return self._read(cells, ">", count, block_ms)

    def read_own(self, cells: Collection[str], count: int) -> list[StreamEntry]:
        """Entries that this consumer has had and not acknowledged."""
        return self._read(cells, "0", count, None)

    def claim(self, cells: Sequence[str], idle_ms: int, count: int) -> list[StreamEntry]:
        """Take over what another consumer has held for so long that it must be dead."""
        with self._client.pipeline(transaction=False) as pipe:
            for cell in cells:
                pipe.xautoclaim(
                    redis_keys.usage_stream(cell), redis_keys.USAGE_GROUP, self._consumer,
                    min_idle_time=idle_ms, count=count,
                )  # fmt: skip
            replies = pipe.execute() if cells else []
        return [each for cell, reply in zip(cells, replies, strict=True) for each in _entries(cell, reply[1])]

    def stranded(self, cells: Sequence[str], count: int) -> list[StreamEntry]:
        """Entries older than any consumer should leave them, whatever the group says."""
        oldest = str(redis_clock.now_ms(self._client) - _STRANDED_MS)
        with self._client.pipeline(transaction=False) as pipe:
            for cell in cells:
                pipe.xrange(redis_keys.usage_stream(cell), "-", oldest, count=count)
            replies = pipe.execute() if cells else []
        return [each for cell, reply in zip(cells, replies, strict=True) for each in _entries(cell, reply)]

    def acknowledge(self, entries: Iterable[StreamEntry]) -> None:
        """SQL has them: acknowledge and delete in one step."""
        ids: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            ids[redis_keys.usage_stream(entry.cell)].append(entry.entry_id)
        if not ids:
            return
        with self._client.pipeline(transaction=True) as both:
            for key, its in ids.items():
                both.xack(key, redis_keys.USAGE_GROUP, *its)
                both.xdel(key, *its)
            both.execute()

    def lags(self, cells: Sequence[str]) -> dict[str, StreamLag]:
        """What each of these cells' streams still holds, by the server's clock."""
        if not cells:
            return {}
        with self._client.pipeline(transaction=False) as read:
            for cell in cells:
                read.xlen(redis_keys.usage_stream(cell))
            lengths = dict(zip(cells, read.execute(), strict=True))
        lags = dict.fromkeys(cells, NO_LAG)
        if waiting := [cell for cell, length in lengths.items() if length]:
            with self._client.pipeline(transaction=False) as read:
                for cell in waiting:
                    read.xrange(redis_keys.usage_stream(cell), "-", "+", count=1)
                read.time()
                *oldest, clock = read.execute()
            now_ms = redis_clock.milliseconds(clock)
            for cell, first in zip(waiting, oldest, strict=True):
                age_ms = now_ms - int(first[0][0].split(b"-")[0]) if first else 0
                lags[cell] = StreamLag(lengths[cell], max(0, age_ms))
        return lags

    def _read(
        self, cells: Collection[str], after: str, count: int, block_ms: int | None
    ) -> list[StreamEntry]:
        if not cells:
            return []
        by_key = {redis_keys.usage_stream(cell).encode(): cell for cell in cells}
        streams: dict[Any, Any] = dict.fromkeys(by_key, after)
        reply: Any = self._client.xreadgroup(
            redis_keys.USAGE_GROUP, self._consumer, streams, count=count, block=block_ms
        )
        return [each for key, entries in reply or () for each in _entries(by_key[key], entries)]


def _entries(cell: str, reply: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[StreamEntry]:
    return [StreamEntry(cell, entry_id.decode(), _raw(fields)) for entry_id, fields in reply]


def _raw(fields: dict[bytes, bytes]) -> bytes | None:
    if not fields:
        return None
    # Without the usage field it is not an event; what there is instead is handed on, to be rejected as it
    # stands.
    return fields.get(redis_keys.USAGE_FIELD.encode(), repr(fields).encode())
