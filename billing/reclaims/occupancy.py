"""What runs in a pool now: its instances, and the open requests of each. Reads Redis only."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

import orjson
import redis

from billing.fleet.registered import read_registered
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry
from billing.wire.reservation import stored

_CLASSES: Final = {"r": "reserved", "o": "on_demand", "f": "flex"}
_REQUEST_FIELDS: Final = stored("state", "head", "instance", "class", "tenant", "contract", "gateway")
# The classes in the order in which a leaving machine is cleared of them.
CLEARING_ORDER: Final = ("flex", "on_demand", "reserved")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRequest:
    """One request in flight. `resumable`: it can be preempted and resumed elsewhere from its text; only
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
    resumable: bool = False

    def resumes_in(self, cells_ready: Collection[str]) -> bool:
        """Whether it resumes if it is preempted; `cells_ready`: those in which an instance that stays takes
        new requests. If none is left to resume on, it had better finish where it is.
        """
        return self.resumable and self.cell in cells_ready


@dataclass(frozen=True, slots=True)
class OccupiedInstance:
    """An instance that could be taken, and its open requests. `load`: their number, or the load that its
    engine reports, whichever is greater.
    """

    instance: str
    ready: bool
    load: int
    requests: tuple[RunningRequest, ...] = ()
    cell: str = ""

    def by_class(self) -> dict[str, int]:
        """How many are open of each class, in the order of `CLEARING_ORDER`."""
        return count_classes(self.requests)

    @property
    def harm(self) -> tuple[int, ...]:
        """Open requests that taking the instance would disturb, the worst first: reserved, on-demand, flex
        that cannot be resumed, other load of its engine, flex that can be resumed.
        """
        able = sum(request.resumable for request in self.requests)
        count = self.by_class()
        return (
            count["reserved"],
            count["on_demand"],
            count["flex"] - able,
            self.load - len(self.requests),
            able,
        )


def count_classes(requests: Iterable[RunningRequest]) -> dict[str, int]:
    """How many there are of each class, in the order of `CLEARING_ORDER`."""
    counted = Counter(request.class_ for request in requests)
    return {name: counted[name] for name in CLEARING_ORDER}


def read_occupied(client: redis.Redis, pool: str, away: Collection[str]) -> list[OccupiedInstance]:
    """The instances of a pool that are expected to stay, by id: not those that are `away`, or drain by
    themselves. Raises redis.RedisError.
    """
    there = [entry for entry in read_registered(client) if entry.pool == pool and entry.status != "draining"]
    there = [entry for entry in there if entry.instance not in away and not entry.is_provider]
    open_on: defaultdict[str, list[RunningRequest]] = defaultdict(list)
    for request in _read_open(client, {entry.cell for entry in there}):
        open_on[request.instance].append(request)
    return [_occupied(entry, open_on[entry.instance]) for entry in there]


def read_open_on(client: redis.Redis, pool: str, instances: Iterable[str]) -> list[RunningRequest]:
    """The open requests of these instances of a pool, in the order of `CLEARING_ORDER`. Raises
    redis.RedisError.

    It looks in every cell: an instance that has left the registry may have requests that are not settled yet.
    """
    wanted = frozenset(instances)
    cells = {cell.decode() if isinstance(cell, bytes) else cell for cell in client.smembers(redis_keys.CELLS)}
    found = [request for request in _read_open(client, cells) if request.instance in wanted]
    return sorted(
        found, key=lambda each: (CLEARING_ORDER.index(each.class_), each.started_ms, each.request_id)
    )


def _occupied(entry: InstanceEntry, requests: list[RunningRequest]) -> OccupiedInstance:
    load = max(len(requests), entry.load.running + entry.load.waiting)
    return OccupiedInstance(entry.instance, entry.status == "ready", load, tuple(requests), entry.cell)


def read_cells_ready(client: redis.Redis, pool: str) -> frozenset[str]:
    """The cells of a pool in which an instance takes new requests: preempted requests can resume there.
    Raises redis.RedisError.
    """
    return frozenset(
        entry.cell
        for entry in read_registered(client)
        if entry.pool == pool and entry.status == "ready" and not entry.is_provider
    )


def _read_open(client: redis.Redis, cells: Iterable[str]) -> list[RunningRequest]:
    names = sorted(cells)
    with client.pipeline(transaction=False) as read:
        for cell in names:
            read.zrange(redis_keys.open_requests(cell), 0, -1)
        found = [(cell, raw.decode()) for cell, ids in zip(names, read.execute(), strict=True) for raw in ids]
    with client.pipeline(transaction=False) as read:
        for cell, request_id in found:
            read.hmget(redis_keys.reservation(cell, request_id), _REQUEST_FIELDS)
        replies = read.execute()
    requests = (
        _request(cell, request_id, fields) for (cell, request_id), fields in zip(found, replies, strict=True)
    )
    there = [request for request in requests if request is not None]
    able = _read_able(
        client, {(request.cell, request.instance) for request in there if request.class_ == "flex"}
    )
    return [replace(request, resumable=request.request_id in able) for request in there]


def _read_able(client: redis.Redis, places: Collection[tuple[str, str]]) -> frozenset[str]:
    """The flex requests at these (cell, instance) that can be resumed elsewhere."""
    with client.pipeline(transaction=False) as read:
        for cell, instance in places:
            read.zrangebyscore(redis_keys.preemptible(cell, instance), "-inf", "(0")
        return frozenset(raw.decode() for ids in read.execute() for raw in ids)


def _request(cell: str, request_id: str, fields: list[bytes | None]) -> RunningRequest | None:
    """None for a request that waits, that was granted a slot but has not begun, or that has settled
    meanwhile.
    """
    state, head, instance, class_, tenant, contract, gateway = fields
    if state != b"open" or not instance or tenant is None:
        return None
    try:
        started_ms = int(orjson.loads(head or b"{}").get("started_ms", 0))
    except (ValueError, AttributeError, TypeError):
        started_ms = 0
    return RunningRequest(
        request_id=request_id,
        tenant=tenant.decode(),
        class_=_CLASSES.get((class_ or b"o").decode(), "on_demand"),
        contract=contract.decode() if contract else None,
        instance=instance.decode(),
        started_ms=started_ms,
        cell=cell,
        gateway=(gateway or b"").decode(),
    )
