"""One cell in Redis as the allocator sees it: what it reads at the start of a round, and what it writes at
the end. It owns the fields of the contracts' hashes and of `room`; it decides nothing. What the allocator
must remember from round to round is in `room` too, so that any other process can continue.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import redis

from billing.allocator.minutes import Account, Totals
from billing.allocator.shares import Health, InFlight, Share
from billing.cell.execute import execute
from billing.cell.replies import parse_preempt_repeats
from billing.cell.scripts import Command, grant_call
from billing.moments import DAY_MS
from billing.wire import redis_clock, redis_keys, reservation

# A cell that is no longer allocated keeps its last figures for this long.
_TTL_MS: Final = 7 * DAY_MS
_ACCOUNT: Final = "ev"
_MEMORY: Final = "s"
# Fields of `room` per instance: m = slots that on-demand and flex share, d = at most for on-demand, x = at
# most for flex, g = flex sequences to preempt, w = prefill rate in mu/s.
_ROOM: Final = "m:"
_ON_DEMAND: Final = "d:"
_FLEX: Final = "x:"
_PREEMPT: Final = "g:"
_READS: Final = "w:"
_PER_INSTANCE: Final = (_ROOM, _ON_DEMAND, _FLEX, _PREEMPT, _READS)
# What the scripts count of a contract, in the order of `Totals`.
_TOTALS: Final = ("used", "borrowed", "refused", "limited:requests", "limited:concurrency", "limited:cancels")
_COUNTED: Final = {"r": "reserved", "o": "on_demand", "f": "flex", "l": "long"}
_NO_CAP: Final = -1
_LOOKED_AT: Final = 100


@dataclass(frozen=True, slots=True)
class ContractHash:
    """A tenant's contract hash: the figures in force, and what the scripts have counted."""

    contract_id: str
    rate_mu_s: int
    end_ms: int
    totals: Totals
    account: Account | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What a round needs from the last one: the cell's total work when it was last read, each instance's
    health, the recent use of each contract, and which part of the idle sold capacity on-demand may use.
    """

    at_ms: int = 0
    work_mu: int = 0
    health: Mapping[str, Health] = field(default_factory=dict)
    recent_mu_s: Mapping[str, float] = field(default_factory=dict)
    lending: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """A cell at one moment, by Redis's clock. `work_mu`: charged in total, over all classes.
    `on_demand_waits`, `flex_waits`: tenants that wait. `on_demand_requests`: on-demand requests that wait.
    `version`: a write must find it unchanged.
    """

    read_ms: int
    version: bytes
    contracts: Mapping[str, ContractHash]
    instances: frozenset[str]
    in_flight: Mapping[str, InFlight]
    work_mu: int
    on_demand_waits: int
    on_demand_requests: int
    flex_waits: int
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The figures by which the scripts decide a tenant's contract. `spill_mu_s` None: no cap."""

    contract_id: str
    rate_mu_s: int
    overflow: str
    spill_mu_s: int | None
    end_ms: int
    burst_mu: int = 0


def room_of(cell: str, instance: str) -> Command:
    """A command that reads how many slots this instance has; nil until a round has written it."""
    return "HGET", redis_keys.room(cell), _ROOM + instance


def read_state(client: redis.Redis, cell: str, tenants: Sequence[str]) -> CellState:
    """The cell, and the contracts of these tenants. Raises redis.RedisError."""
    with client.pipeline(transaction=True) as read:
        read.time()
        read.hgetall(redis_keys.room(cell))
        read.hgetall(redis_keys.flight(cell))
        read.zcard(redis_keys.waiting_tenants(cell, "o"))
        read.zcard(redis_keys.waiting_tenants(cell, "f"))
        for tenant in tenants:
            read.hgetall(redis_keys.contract_bucket(cell, tenant))
        clock, room, flight, on_demand_waits, flex_waits, *hashes = read.execute()
    found = {tenant: _contract(_text(fields)) for tenant, fields in zip(tenants, hashes, strict=True)}
    fields = _text(room)
    return CellState(
        read_ms=redis_clock.milliseconds(clock),
        version=room.get(_MEMORY.encode(), b""),
        contracts={tenant: hash_ for tenant, hash_ in found.items() if hash_ is not None},
        instances=frozenset(name.partition(":")[2] for name in fields if name.startswith(_PER_INSTANCE)),
        in_flight=_in_flight(_text(flight)),
        work_mu=int(float(_text(flight).get("used", 0))),
        on_demand_waits=on_demand_waits,
        on_demand_requests=_requests_waiting(client, cell, on_demand_waits),
        flex_waits=flex_waits,
        memory=_memory(fields.get(_MEMORY)),
    )


def _requests_waiting(client: redis.Redis, cell: str, tenants: int) -> int:
    """How many on-demand requests wait, of `tenants` tenants; tenants beyond the first hundred count as one
    request each.
    """
    if not tenants:
        return 0
    first: Any = client.zrange(redis_keys.waiting_tenants(cell, "o"), 0, _LOOKED_AT - 1)
    with client.pipeline(transaction=False) as read:
        for tenant in first:
            read.zcard(redis_keys.waiting_requests(cell, "o", tenant.decode()))
        return sum(read.execute()) + max(0, tenants - len(first)) if first else 0


def write_state(
    client: redis.Redis,
    cell: str,
    *,
    read: CellState,
    contracts: Mapping[str, Numbers],
    accounts: Mapping[str, Account],
    shares: Iterable[Share],
    capacity_mu_s: int,
    gone: Iterable[str],
    memory: Memory,
) -> bool:
    """Write all figures of a round at once: contracts and accounts by tenant, and the room of each instance.
    The figures of `gone` ones are removed. Returns False, and writes nothing, if another allocator has
    written since `read`. Raises redis.RedisError.
    """
    room: dict[Any, Any] = {_MEMORY: json.dumps(asdict(memory), separators=(",", ":"))}
    for share in shares:
        room |= {_ROOM + share.instance: share.room, _ON_DEMAND + share.instance: share.on_demand}
        room[_FLEX + share.instance] = share.flex
        room[_PREEMPT + share.instance] = share.preempt
        room[_READS + share.instance] = capacity_mu_s if share.measured else 0
    stale = [prefix + instance for instance in gone for prefix in _PER_INSTANCE]
    keys = [redis_keys.room(cell)]
    arguments: list[Any] = [read.version, _TTL_MS, *_fields(room), len(stale), *stale]
    for tenant, numbers in contracts.items():
        keys.append(redis_keys.contract_bucket(cell, tenant))
        arguments += _fields({**_numbers(numbers), _ACCOUNT: json.dumps(accounts[tenant].to_record())})
    return bool(client.register_script(_write_numbers())(keys=keys, args=arguments))


@cache
def _write_numbers() -> str:
    return (Path(__file__).parent / "lua" / "write_numbers.lua").read_text(encoding="utf-8")


def _fields(fields: Mapping[Any, Any]) -> list[Any]:
    return [len(fields), *(word for pair in fields.items() for word in pair)]


def forget_contracts(client: redis.Redis, cell: str, tenants: Iterable[str]) -> None:
    """Delete the hashes of contracts that have ended."""
    for tenant in tenants:
        client.delete(redis_keys.contract_bucket(cell, tenant))


def left_behind(client: redis.Redis, cell: str, contracts: Mapping[str, str]) -> list[str]:
    """Of these contracts, by tenant, those whose figures are still in the cell. Raises redis.RedisError."""
    with client.pipeline(transaction=False) as read:
        for tenant in contracts:
            read.hget(redis_keys.contract_bucket(cell, tenant), "id")
        standing = read.execute() if contracts else []
    pairs = zip(contracts.items(), standing, strict=True)
    return [tenant for (tenant, contract_id), id_ in pairs if id_ is not None and id_.decode() == contract_id]


def charged_tenants(client: redis.Redis, cell: str, tenants: Iterable[str]) -> set[str]:
    """Of these tenants, those whose contract is still charged for an open request."""
    keys = {redis_keys.contract_bucket(cell, tenant).encode(): tenant for tenant in tenants}
    if not keys:
        return set()
    requests: Any = client.zrange(redis_keys.open_requests(cell), 0, -1)
    with client.pipeline(transaction=False) as read:
        for request_id in requests:
            read.hget(redis_keys.reservation(cell, request_id.decode()), reservation.FIELDS["contract_key"])
        return {keys[charged] for charged in read.execute() if charged in keys}


def grant(client: redis.Redis, cell: str) -> int:
    """Preempt flex requests that are in the way, and grant free slots. Returns how many preempted requests
    had to be signalled again.
    """
    return parse_preempt_repeats(execute(client, grant_call(cell)))


def _numbers(numbers: Numbers) -> dict[Any, Any]:
    return {
        "id": numbers.contract_id,
        "rate": numbers.rate_mu_s,
        "burst": numbers.burst_mu,
        "of": numbers.overflow,
        "spill": _NO_CAP if numbers.spill_mu_s is None else numbers.spill_mu_s,
        "end": numbers.end_ms,
    }


def _contract(fields: Mapping[str, str]) -> ContractHash | None:
    if "id" not in fields:
        return None
    totals = Totals.of([int(float(fields.get(name, 0))) for name in _TOTALS])
    return ContractHash(
        fields["id"], int(float(fields["rate"])), int(fields["end"]), totals, _account(fields.get(_ACCOUNT))
    )


def _account(raw: str | None) -> Account | None:
    try:
        return Account.from_record(json.loads(raw or ""))
    except (ValueError, KeyError, TypeError):
        return None


def _memory(raw: str | None) -> Memory:
    try:
        record = json.loads(raw or "")
        health = {name: Health(**fields) for name, fields in record["health"].items()}
        return Memory(record["at_ms"], record["work_mu"], health, record["recent_mu_s"], record["lending"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return Memory()


def _in_flight(fields: Mapping[str, str]) -> dict[str, InFlight]:
    counted: dict[str, dict[str, int]] = {}
    for name, count in fields.items():
        letter, colon, instance = name.partition(":")
        if colon and letter in _COUNTED:
            counted.setdefault(instance, {})[_COUNTED[letter]] = max(0, int(count))
    return {instance: InFlight(**classes) for instance, classes in counted.items()}


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
