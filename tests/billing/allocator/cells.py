"""A cell to allocate: a pool with calibrated machines, contracts in force, and requests that use them.
Time is a parameter.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import redis
from sqlalchemy import Engine, select, update

from billing.allocator.allocator import Allocator
from billing.allocator.restore import Restorer
from billing.allocator.round import Round
from billing.contracts import lifecycle
from billing.contracts.terms import Contract
from billing.metrics import BillingMetrics
from billing.moments import HOUR_MS
from billing.schema.capacity import contract_hour, contract_minute
from billing.schema.catalogue import model
from billing.wire import redis_keys
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
    metrics: BillingMetrics = field(default_factory=BillingMetrics)

    def tenant(self, name: str) -> str:
        return self.shop.tenants[name]

    def sign(self, name: str, units: int, **fields: Any) -> Contract:
        """A signed contract from T0 on, of so many units per second."""
        with self.engine.begin() as connection:
            draft = lifecycle.draft(connection, terms(self.tenant(name), units, **fields), now_ms=T0)
            return lifecycle.sign(connection, draft.contract_id, now_ms=T0)

    def register(
        self,
        instance: str,
        *,
        status: str = "ready",
        waiting: int = 0,
        kv_usage: float = 0.0,
        pool: str = POOL,
        **fields: Any,
    ) -> None:
        entry = {
            "instance": instance, "model": POOL, "pool": pool, "cell": CELL, "url": "http://127.0.0.1:1",
            "key": None, "epoch": "e", "status": status, "lease_until_ms": 0, "abort": True, "priority": True,
            "load": {"running": 0, "waiting": waiting, "kv_usage": kv_usage},
        } | fields  # fmt: skip
        self.text.hset(redis_keys.INSTANCES, instance, json.dumps(entry))

    def allocator(self, owner: str = "a", **options: Any) -> Allocator:
        return Allocator(self.engine, self.raw, self.metrics, owner=owner, **options)

    def restorer(self, owner: str = "a", **options: Any) -> Restorer:
        return Restorer(self.engine, self.raw, self.metrics, owner=owner, **options)

    def forget_leases(self) -> None:
        """As if every allocator's lease had lapsed."""
        self.text.delete(redis_keys.ALLOCATORS, redis_keys.ALLOCATORS_ALIVE)

    def holder(self, cell: str = CELL) -> str | None:
        """The process that allocates the cell."""
        return self.text.hget(redis_keys.ALLOCATORS, cell)  # type: ignore[return-value]

    def request(self, request_id: str, name: str = "acme", **fields: Any) -> CellRequest:
        tenant = self.tenant(name)
        return CellRequest(client=self.text, request_id=request_id, tenant=tenant, model=POOL, **fields)

    def room(self) -> dict[str, str]:
        return self.text.hgetall(redis_keys.room(CELL))  # type: ignore[return-value]

    def contract(self, name: str) -> dict[str, str]:
        return self.text.hgetall(redis_keys.contract_bucket(CELL, self.tenant(name)))  # type: ignore[return-value]

    def use(self, name: str, mu: int = 0, *, borrowed: int = 0, refused: int = 0) -> None:
        """What the scripts do when a contract is charged."""
        key = redis_keys.contract_bucket(CELL, self.tenant(name))
        for total, amount in (("used", mu), ("borrowed", borrowed), ("refused", refused)):
            self.text.hincrby(key, total, amount)
        self.work(mu + borrowed)

    def work(self, mu: int) -> None:
        self.text.hincrby(redis_keys.flight(CELL), "used", mu)

    def minutes(self, contract_id: str) -> dict[int, Any]:
        """Rows of the evidence, by minutes since T0. Those of hours are their sums, whatever happened."""
        with self.engine.connect() as connection:
            minutes, hours = (
                connection.execute(select(table).where(table.c.contract_id == contract_id)).all()
                for table in (contract_minute, contract_hour)
            )
        for name in ("assigned_mu", "used_mu", "lent_mu", "shortfall_mu"):
            sums: defaultdict[int, int] = defaultdict(int)
            for row in minutes:
                sums[row.minute_ms // HOUR_MS] += getattr(row, name)
            assert {row.hour: getattr(row, name) for row in hours} == sums
        return {(row.minute_ms - T0) // MINUTE: row for row in minutes}


def open_ground(engine: Engine, raw: redis.Redis, text: redis.Redis) -> Ground:
    """Two machines of 1,000 units per second and 16 sequences each, in a cell that is not named as its
    pool is.
    """
    with engine.begin() as connection:
        shop = furnish(connection)
        connection.execute(update(model).values(cell=CELL))
    ground = Ground(engine, raw, text, shop)
    for instance in ("i-1", "i-2"):
        ground.register(instance)
    return ground


def only(rounds: list[Round]) -> Round:
    (done,) = rounds
    return done
