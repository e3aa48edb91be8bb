"""What surrounds the scripts of a cell, for their tests: the numbers that an allocator writes, gateways
that listen, and the state as values.
"""

import re
from types import TracebackType
from typing import Any, Self

import redis

from billing.cell import scripts
from billing.cell.execute import execute
from billing.cell.replies import Reserved, ReserveReply, Waiting
from billing.wire import redis_keys
from tests.billing.cell.requests import CELL, CellRequest

NUMBERS_TTL_MS = 7 * 86_400_000
_END = "nothing more"
TWO = (("i-1", "e-1"), ("i-2", "e-2"))


def set_room(client: redis.Redis, room: dict[str, tuple[int, int]]) -> None:
    """The whole room of the cell: for each instance, sequences of on-demand and flex together, and of
    flex.
    """
    key = redis_keys.room(CELL)
    client.delete(key)
    for instance, (most, flex) in room.items():
        client.hset(key, mapping={f"m:{instance}": most, f"x:{instance}": flex})
        client.pexpire(key, NUMBERS_TTL_MS)


def sign(
    client: redis.Redis,
    tenant: str,
    rate_mu_s: int,
    overflow: str = "reject",
    *,
    spill_mu_s: int = -1,
    ends_in_s: float = 3_600,
    contract: str = "c-1",
) -> None:
    """A tenant's contract, as of now; its level and totals stay."""
    seconds, _ = client.time()
    key = redis_keys.contract_bucket(CELL, tenant)
    client.hset(
        key,
        mapping={
            "id": contract, "rate": rate_mu_s, "burst": rate_mu_s, "of": overflow, "spill": spill_mu_s,
            "end": int((seconds + ends_in_s) * 1000),
        },
    )  # fmt: skip
    client.pexpire(key, NUMBERS_TTL_MS)


def contract_field(client: redis.Redis, tenant: str, name: str) -> float:
    """A field of a tenant's contract, 0 without it."""
    return float(client.hget(redis_keys.contract_bucket(CELL, tenant), name) or 0)


def age_contract(client: redis.Redis, tenant: str, seconds: float) -> None:
    """As if so much time had passed for a tenant's contract."""
    key = redis_keys.contract_bucket(CELL, tenant)
    for name in ("t", "st"):
        at_us = client.hget(key, name)
        if at_us is not None:
            client.hset(key, name, int(float(at_us) - seconds * 1e6))


def flight(client: redis.Redis) -> dict[str, int]:
    """Sequences in flight by class and instance (`o:i-1`), without those that are 0."""
    fields: Any = client.hgetall(redis_keys.flight(CELL))
    return {name: int(count) for name, count in fields.items() if re.match("[rof]:", name) and int(count)}


def flight_field(client: redis.Redis, name: str) -> float:
    """Another field of the same hash, 0 without it."""
    return float(client.hget(redis_keys.flight(CELL), name) or 0)


def tenants_waiting(client: redis.Redis, class_letter: str = "o") -> dict[str, float]:
    """Who waits in a class, and with what counter; first the one whose turn it is."""
    found: Any = client.zrange(redis_keys.waiting_tenants(CELL, class_letter), 0, -1, withscores=True)
    return dict(found)


def queue(client: redis.Redis, tenant: str, class_letter: str = "o") -> list[str]:
    """The requests of a tenant that wait, by arrival."""
    found: Any = client.zrange(redis_keys.waiting_requests(CELL, class_letter, tenant), 0, -1)
    return list(found)


def state_of(client: redis.Redis, request_id: str) -> str | None:
    """waiting | granted | open | settled, None for none."""
    state: str | None = client.hget(redis_keys.reservation(CELL, request_id), "state")  # type: ignore[assignment]
    return state


def granted_at(client: redis.Redis, request_id: str) -> str:
    """The instance that a request has."""
    return str(client.hget(redis_keys.reservation(CELL, request_id), "inst"))


def virtual(client: redis.Redis, tenant: str, model: str = "org/m:1") -> float:
    """A tenant's counter: mu over weight."""
    return float(client.hget(redis_keys.tenant_bucket(CELL, tenant, model), "v") or 0)


def plan_anew(client: redis.Redis) -> list[int]:
    """What an allocator calls after it has written its numbers: now_ms, tenants that wait for on-demand,
    for flex, requests open.
    """
    return execute(client, scripts.grant_call(CELL))[:5]


def waits(client: redis.Redis, request_id: str, tenant: str = "acme", **more: object) -> CellRequest:
    """A request that waits in the queue."""
    request = CellRequest(client=client, request_id=request_id, tenant=tenant, wait_max=1_000, **more)  # type: ignore[arg-type]
    assert isinstance(request.reserve(1_000), Waiting)
    return request


def instance_of(reply: ReserveReply) -> str:
    """Where it was admitted."""
    assert isinstance(reply, Reserved)
    return reply.grant.instance


class Listener:
    """Gateways that hear what they are granted."""

    def __init__(self, client: redis.Redis, *gateways: str) -> None:
        self._client = client
        self._channels = [redis_keys.wake_channel(gateway) for gateway in gateways]
        untyped: Any = client
        self._pubsub = untyped.pubsub(ignore_subscribe_messages=True)

    def __enter__(self) -> Self:
        self._pubsub.subscribe(*self._channels)
        for _ in self._channels:
            self._pubsub.get_message(timeout=5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pubsub.close()

    def woken(self) -> list[str]:
        """Every request id heard of since the last call, in order."""
        self._client.publish(self._channels[0], _END)
        heard: list[str] = []
        while True:
            message = self._pubsub.get_message(timeout=5)
            if message is None:
                continue
            if message["data"] == _END:
                return heard
            heard.append(message["data"])
