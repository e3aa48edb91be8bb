"""The inventory for Prometheus: engines by status, declared instances of pools, names of tenants, ends of
contracts.

It only reads. It owns how many tenants and contracts are named, so that the metrics page stays bounded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import redis
from sqlalchemy import Connection, Engine, select

from billing.catalogue import pools
from billing.contracts.store import BINDING
from billing.fleet.registered import read_known
from billing.schema.capacity import contract
from billing.schema.catalogue import tenant
from billing.wire.instance_entry import InstanceEntry

STATUSES: Final = ("starting", "ready", "draining", "down")
# As many tenants as a gateway has series for. The oldest are named, so that a new one does not replace
# another.
TENANTS_MAX: Final = 4_000
CONTRACTS_MAX: Final = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractInfo:
    """A contract that is signed and has not ended. `ends_ms`: its end after notice."""

    contract_id: str
    tenant_id: str
    tenant_name: str
    pool: str
    state: str
    overflow: str
    ends_ms: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """`engines`: how many, by pool, model and status; a pool and model with any engine has every status.
    `declared`: instances by pool.
    """

    engines: Mapping[tuple[str, str, str], int]
    declared: Mapping[str, int]
    tenants: Sequence[tuple[str, str]]
    contracts: Sequence[ContractInfo]


def read_inventory(engine: Engine, client: redis.Redis, *, tenants_max: int = TENANTS_MAX) -> Inventory:
    """All of it. The client must not decode. Raises redis.RedisError, SQLAlchemyError."""
    engines = count_engines(read_known(client))
    with engine.connect() as connection:
        return Inventory(
            engines, pools.declared(connection), _tenants(connection, tenants_max), _contracts(connection)
        )


def count_engines(entries: Sequence[InstanceEntry]) -> dict[tuple[str, str, str], int]:
    """By pool, model and status; 0 where a pool and model has none of a status."""
    there = Counter((entry.pool, entry.model, entry.status.value) for entry in entries)
    kinds = sorted({(pool, model) for pool, model, _ in there})
    return {(pool, model, status): there[pool, model, status] for pool, model in kinds for status in STATUSES}


def _tenants(connection: Connection, most: int) -> list[tuple[str, str]]:
    query = (
        select(tenant.c.tenant_id, tenant.c.name)
        .where(tenant.c.status != "archived")
        .order_by(tenant.c.created_ms, tenant.c.tenant_id)
        .limit(most)
    )
    return [(row.tenant_id, row.name) for row in connection.execute(query)]


def _contracts(connection: Connection) -> list[ContractInfo]:
    query = (
        select(
            contract.c.contract_id,
            contract.c.tenant_id,
            tenant.c.name.label("tenant_name"),
            contract.c.pool,
            contract.c.state,
            contract.c.overflow,
            contract.c.effective_end_ms.label("ends_ms"),
        )
        .join(tenant, tenant.c.tenant_id == contract.c.tenant_id)
        .where(contract.c.state.in_(BINDING))
        .order_by(contract.c.effective_end_ms, contract.c.contract_id)
        .limit(CONTRACTS_MAX)
    )
    return [ContractInfo(**row._mapping) for row in connection.execute(query)]
