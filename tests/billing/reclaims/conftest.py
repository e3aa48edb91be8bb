"""A pool with machines that run, contracts and a clock of the test's own; all of it committed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Engine, select

from billing.catalogue.projection import Projector
from billing.cell.execute import execute
from billing.cell.replies import Reserved, parse_reserve
from billing.cell.scripts import Tier, reserve_call
from billing.contracts import lifecycle
from billing.contracts.terms import Contract, Side
from billing.reclaims import orders, store
from billing.reclaims.carry_out import Reclaimer
from billing.reclaims.plan import ReclaimOrder, ReclaimPlan
from billing.reclaims.store import Reclaim
from billing.schema.capacity import contract_shortfall
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.tokens import Tokens
from tests.billing.cell.requests import CELL, CellRequest
from tests.billing.contracts.selling import POOL, T0, Shop, furnish, terms

MINUTE = 60_000


@dataclass
class Ground:
    """The stores, and short words for what happens in them."""

    engine: Engine
    raw: redis.Redis
    text: redis.Redis
    shop: Shop
    projector: Projector

    def sign(self, name: str, units: int, **fields: Any) -> Contract:
        with self.engine.begin() as connection:
            draft = lifecycle.draft(connection, terms(self.shop.tenants[name], units, **fields), now_ms=T0)
            return lifecycle.sign(connection, draft.contract_id, now_ms=T0)

    def give_notice(self, contract: Contract, side: Side, now_ms: int) -> Contract:
        with self.engine.begin() as connection:
            return lifecycle.give_notice(connection, contract.contract_id, side, now_ms=now_ms)

    def register(self, instance: str, *, status: str = "ready", running: int = 0) -> None:
        entry = {
            "instance": instance, "model": POOL, "pool": POOL, "cell": CELL, "url": "http://127.0.0.1:1",
            "key": None, "epoch": "e", "status": status, "lease_until_ms": 0, "abort": True, "priority": True,
            "load": {"running": running, "waiting": 0, "kv_usage": 0.0},
        }  # fmt: skip
        self.text.hset(redis_keys.INSTANCES, instance, json.dumps(entry))
        self.text.sadd(redis_keys.CELLS, CELL)

    def request(self, request_id: str, instance: str, name: str = "acme", **fields: Any) -> CellRequest:
        candidates = ((instance, "e"),)
        return CellRequest(
            client=self.text,
            request_id=request_id,
            tenant=self.shop.tenants[name],
            model=POOL,
            candidates=candidates,
            **fields,
        )

    def lend(self, request_id: str, instance: str, name: str = "acme") -> CellRequest:
        """An open flex request that can be resumed elsewhere."""
        made = self.request(request_id, instance, name, asked=Tier.FLEX)
        crash_event = made.event(Ending.GATEWAY_DIED, Tokens(0, 0, 0), 0).crash_event_json()
        call = reserve_call(
            made.keys, lease_ms=60_000, cost_mu=0, tenant=made.tenant_limits, key=made.key_limits,
            claim=replace(made.claim, can_resume=True), head=made.head.admission_json(),
            crash_event=crash_event,
        )  # fmt: skip
        assert isinstance(parse_reserve(execute(self.text, call)), Reserved)
        return made

    @contextmanager
    def wakes(self) -> Iterator[Callable[[], list[str]]]:
        """Listens in the place of the gateway; what it has heard since it was last asked."""
        with self.text.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(redis_keys.wake_channel("gw-1"))
            assert channel.get_message(timeout=5) is None  # subscribed
            ends = 0

            def heard() -> list[str]:
                nonlocal ends
                ends += 1
                self.text.publish(redis_keys.wake_channel("gw-1"), f"end {ends}")
                words = []
                while (message := channel.get_message(timeout=5)) is None or message["data"] != f"end {ends}":
                    words += [] if message is None else [message["data"]]
                return words

            yield heard

    def plan(self, now_ms: int, instances: int = 1, by_ms: int = T0, **fields: Any) -> ReclaimPlan:
        with self.engine.connect() as connection:
            return orders.plan(
                connection,
                self.raw,
                ReclaimOrder(pool=POOL, instances=instances, use="research", by_ms=by_ms, **fields),
                now_ms,
            )

    def order(self, now_ms: int, instances: int = 1, by_ms: int = T0, **fields: Any) -> Reclaim:
        with self.engine.begin() as connection:
            made, _ = orders.order(
                connection,
                self.raw,
                ReclaimOrder(pool=POOL, instances=instances, use="research", by_ms=by_ms, **fields),
                now_ms,
            )
        self.projector.deliver()
        return made

    def release(self, reclaim: Reclaim, now_ms: int) -> Reclaim:
        with self.engine.begin() as connection:
            released = orders.release(connection, self.raw, reclaim.reclaim_id, now_ms)
        self.projector.deliver()
        return released

    def step(self, now_ms: int) -> bool:
        return Reclaimer(self.engine, self.raw, self.projector).step(now_ms)

    def now(self, reclaim: Reclaim) -> Reclaim:
        with self.engine.connect() as connection:
            return store.find(connection, reclaim.reclaim_id)

    def changes(self, reclaim: Reclaim) -> list[str]:
        with self.engine.connect() as connection:
            return [entry.change for entry in store.history(connection, reclaim.reclaim_id)]

    def drained(self) -> set[str]:
        return set(self.text.hgetall(redis_keys.DRAINED))

    def stops(self) -> list[str]:
        return [
            fields["id"] for _, fields in self.text.xrange(redis_keys.CHANGES) if fields["kind"] == "stop"
        ]

    def shortfalls(self) -> list[tuple[str, int, int, int]]:
        """(contract, second from T0, assigned, cut)."""
        columns = contract_shortfall.c
        query = select(columns.contract_id, columns.second_ms, columns.assigned_mu, columns.cut_mu)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.second_ms, columns.contract_id)).all()
        return [(row.contract_id, (row.second_ms - T0) // 1000, row.assigned_mu, row.cut_mu) for row in rows]


@pytest.fixture
def ground(database: Engine, raw_redis: redis.Redis, valkey: redis.Redis) -> Ground:
    """Two machines of 1,000 units per second each, `a` and `b`, that run; without headroom."""
    with database.begin() as connection:
        shop = furnish(connection)
    made = Ground(database, raw_redis, valkey, shop, Projector(database, raw_redis))
    made.projector.deliver()
    for instance in ("a", "b"):
        made.register(instance)
    return made
