"""What open requests have produced so far, by their last checkpoints. Owns reading reservations; changes nothing in Redis."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
import redis

from billing import redis_keys
from billing.engine_instances import CounterPair
from billing.usage_stream import read_cells


@dataclass(frozen=True, slots=True)
class OpenRequests:
    """Tokens and number of open requests by (instance, epoch); ids of reservations that could not be read."""

    tokens: Mapping[tuple[str, str], CounterPair]
    requests: Mapping[tuple[str, str], int]
    unreadable: tuple[str, ...]


def read_open(client: redis.Redis) -> OpenRequests:
    """All cells. A request that settles meanwhile is left out: its event is in the stream then."""
    cells = read_cells(client)
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            read.zrange(redis_keys.open_requests(cell), 0, -1)
        found = [
            (cell, request_id.decode()) for cell, ids in zip(cells, read.execute(), strict=True) for request_id in ids
        ]
    tokens: dict[tuple[str, str], CounterPair] = defaultdict(CounterPair)
    requests: dict[tuple[str, str], int] = defaultdict(int)
    unreadable: list[str] = []
    with client.pipeline(transaction=False) as read:
        for cell, request_id in found:
            read.hmget(redis_keys.reservation(cell, request_id), ["head", "p", "o"])
        replies = read.execute()
    for (_, request_id), (head, prompt, output) in zip(found, replies, strict=True):
        if head is None:
            continue
        try:
            fields = orjson.loads(head)
            engine = str(fields["instance"]), str(fields["epoch"])
            tokens[engine] += CounterPair(int(prompt or 0), int(output or 0))
            requests[engine] += 1
        except (ValueError, KeyError, TypeError):
            unreadable.append(request_id)
    return OpenRequests(dict(tokens), dict(requests), tuple(unreadable))
