"""Requests without an event in SQL: open ones, by their last checkpoints, or ended ones, in a usage stream.
It changes nothing in Redis.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
import redis

from billing.wire import redis_keys
from billing.wire.reservation import stored
from billing.wire.tokens import CounterPair, UsageEventError
from billing.wire.usage_event import UsageEvent

# Of one stream; more than that, and the figures are told to be incomplete.
_ENTRIES_MAX: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A running request: its instance, what it had produced at its last checkpoint, its number of samples,
    when it started.
    """

    instance: str
    epoch: str
    model: str
    tokens: CounterPair
    samples: int
    started_ms: int


@dataclass(frozen=True, slots=True)
class OpenRequests:
    """Open requests by id, and ids of reservations that could not be read."""

    by_id: Mapping[str, OpenRequest]
    unreadable: tuple[str, ...]

    @property
    def requests(self) -> Mapping[tuple[str, str], int]:
        """How many there are, by instance and epoch."""
        return Counter((each.instance, each.epoch) for each in self.by_id.values())


@dataclass(frozen=True, slots=True)
class OnTheWay:
    """A request that has ended and whose event is in a stream since then, by Redis's clock."""

    instance: str
    epoch: str
    tokens: CounterPair
    since_ms: int


@dataclass(frozen=True, slots=True)
class Streams:
    """The events in all usage streams by request id. Not `complete`: there are more than can be read."""

    by_id: Mapping[str, OnTheWay]
    complete: bool


def read_open(client: redis.Redis, cells: Collection[str]) -> OpenRequests:
    """Those of these cells. A request that settles meanwhile is left out: its event is in the stream then."""
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            read.zrange(redis_keys.open_requests(cell), 0, -1)
        found = [
            (cell, request_id.decode())
            for cell, ids in zip(cells, read.execute(), strict=True)
            for request_id in ids
        ]
    by_id: dict[str, OpenRequest] = {}
    unreadable: list[str] = []
    with client.pipeline(transaction=False) as read:
        for cell, request_id in found:
            read.hmget(redis_keys.reservation(cell, request_id), stored("head", "prompt", "output"))
        replies = read.execute()
    for (_, request_id), (head, prompt, output) in zip(found, replies, strict=True):
        if head is None:
            continue
        try:
            fields = orjson.loads(head)
            by_id[request_id] = OpenRequest(
                instance=str(fields["instance"]),
                epoch=str(fields["epoch"]),
                model=str(fields.get("model", "")),
                tokens=CounterPair(int(prompt or 0), int(output or 0)),
                samples=int(fields.get("samples", 1)),
                started_ms=int(fields["started_ms"]),
            )
        except (ValueError, KeyError, TypeError):
            unreadable.append(request_id)
    return OpenRequests(by_id, tuple(unreadable))


def read_streams(client: redis.Redis, cells: Collection[str]) -> Streams:
    """Every event of these cells that waits for SQL."""
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            read.xrange(redis_keys.usage_stream(cell), count=_ENTRIES_MAX)
        replies = read.execute()
    by_id: dict[str, OnTheWay] = {}
    for entries in replies:
        for entry_id, fields in entries:
            try:
                event = UsageEvent.from_json(fields[redis_keys.USAGE_FIELD.encode()])
            except (UsageEventError, KeyError):
                continue  # the consumer sets it aside, where it is found
            tokens = CounterPair(event.produced.prompt, event.produced.output)
            way = OnTheWay(event.instance, event.epoch, tokens, int(entry_id.split(b"-")[0]))
            by_id.setdefault(event.request_id, way)
    return Streams(by_id, all(len(entries) < _ENTRIES_MAX for entries in replies))
