"""What runs in a pool at this moment: its instances, and what is open on each. Reads Redis only."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

import orjson
import redis

from billing.fleet.registered import read_registered
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry

_CLASSES: Final = {"r": "reserved", "o": "on_demand", "f": "flex"}
# In the order in which they give way.
GIVE_WAY: Final = ("flex", "on_demand", "reserved")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """One request in flight. `can_go_on`: it can give its place up and go on elsewhere from its text; only
    flex can.
    """

    request_id: str
    tenant: str
    class_: str
    contract: str | None
    instance: str
    started_ms: int
    cell: str = ""
    gateway: str = ""
    can_go_on: bool = False


@dataclass(frozen=True, slots=True)
class Occupied:
    """An instance that could be taken, and what is open there. `load`: the greater of that and of what its
    engine says.
    """

    instance: str
    ready: bool
    load: int
    requests: tuple[OpenRequest, ...] = ()

    def by_class(self) -> dict[str, int]:
        """How many are open of each class, in the order in which they give way."""
        return count_classes(self.requests)

    @property
    def harm(self) -> tuple[int, ...]:
        """What taking it does to whom, the worst first: reserved, on-demand, flex that cannot go on, what
        its engine has besides, flex that can.
        """
        able = sum(request.can_go_on for request in self.requests)
        count = self.by_class()
        return (
            count["reserved"],
            count["on_demand"],
            count["flex"] - able,
            self.load - len(self.requests),
            able,
        )


def count_classes(requests: Iterable[OpenRequest]) -> dict[str, int]:
    """How many there are of each class, in the order in which they give way."""
    counted = Counter(request.class_ for request in requests)
    return {name: counted[name] for name in GIVE_WAY}


def read_occupied(client: redis.Redis, pool: str, away: Collection[str]) -> list[Occupied]:
    """The instances of a pool that stay as far as is known, by id: not those that are `away`, or leave by
    themselves. Raises redis.RedisError.
    """
    there = [entry for entry in read_registered(client) if entry.pool == pool and entry.status != "draining"]
    there = [entry for entry in there if entry.instance not in away]
    open_on: defaultdict[str, list[OpenRequest]] = defaultdict(list)
    for request in _read_open(client, {entry.cell for entry in there}):
        open_on[request.instance].append(request)
    return [_occupied(entry, open_on[entry.instance]) for entry in there]


def read_open_on(client: redis.Redis, pool: str, instances: Iterable[str]) -> list[OpenRequest]:
    """What is open on these instances of a pool, in the order in which it gives way. Raises redis.RedisError.

    Looked for in every cell: an instance that has left the registry may have requests that nobody has settled
    yet.
    """
    wanted = frozenset(instances)
    cells = {cell.decode() if isinstance(cell, bytes) else cell for cell in client.smembers(redis_keys.CELLS)}
    found = [request for request in _read_open(client, cells) if request.instance in wanted]
    return sorted(found, key=lambda each: (GIVE_WAY.index(each.class_), each.started_ms, each.request_id))


def _occupied(entry: InstanceEntry, requests: list[OpenRequest]) -> Occupied:
    load = max(len(requests), entry.load.running + entry.load.waiting)
    return Occupied(entry.instance, entry.status == "ready", load, tuple(requests))


def read_cells_ready(client: redis.Redis, pool: str) -> frozenset[str]:
    """The cells of a pool in which an instance takes new requests: what gives way can go on there. Raises
    redis.RedisError.
    """
    return frozenset(
        entry.cell for entry in read_registered(client) if entry.pool == pool and entry.status == "ready"
    )


def _read_open(client: redis.Redis, cells: Iterable[str]) -> list[OpenRequest]:
    names = sorted(cells)
    with client.pipeline(transaction=False) as read:
        for cell in names:
            read.zrange(redis_keys.open_requests(cell), 0, -1)
        found = [(cell, raw.decode()) for cell, ids in zip(names, read.execute(), strict=True) for raw in ids]
    with client.pipeline(transaction=False) as read:
        for cell, request_id in found:
            read.hmget(
                redis_keys.reservation(cell, request_id), ["state", "head", "inst", "cls", "ten", "cid", "gw"]
            )
        replies = read.execute()
    requests = (
        _request(cell, request_id, fields) for (cell, request_id), fields in zip(found, replies, strict=True)
    )
    there = [request for request in requests if request is not None]
    able = _read_able(
        client, {(request.cell, request.instance) for request in there if request.class_ == "flex"}
    )
    return [replace(request, can_go_on=request.request_id in able) for request in there]


def _read_able(client: redis.Redis, places: Collection[tuple[str, str]]) -> frozenset[str]:
    """The flex requests at these (cell, instance) that can go on elsewhere."""
    with client.pipeline(transaction=False) as read:
        for cell, instance in places:
            read.zrangebyscore(redis_keys.lent(cell, instance), "-inf", "(0")
        return frozenset(raw.decode() for ids in read.execute() for raw in ids)


def _request(cell: str, request_id: str, fields: list[bytes | None]) -> OpenRequest | None:
    """None for one that waits, has been granted a place but not begun, or has settled meanwhile."""
    state, head, instance, class_, tenant, contract, gateway = fields
    if state != b"open" or not instance or tenant is None:
        return None
    try:
        started_ms = int(orjson.loads(head or b"{}").get("started_ms", 0))
    except (ValueError, AttributeError, TypeError):
        started_ms = 0
    return OpenRequest(
        request_id=request_id,
        tenant=tenant.decode(),
        class_=_CLASSES.get((class_ or b"o").decode(), "on_demand"),
        contract=contract.decode() if contract else None,
        instance=instance.decode(),
        started_ms=started_ms,
        cell=cell,
        gateway=(gateway or b"").decode(),
    )
