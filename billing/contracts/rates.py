"""The rate of each contract at this moment, for the allocator, which asks every second. It only reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, select

from billing.contracts.store import BINDING
from billing.contracts.terms import BURST_MS, Overflow
from billing.schema.capacity import contract, contract_step


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRate:
    """One contract in force. `spill_mu_s` None: spilling has no cap."""

    contract_id: str
    tenant: str
    mu_s: int
    overflow: Overflow
    spill_mu_s: int | None
    end_ms: int
    burst_ms: int = BURST_MS


RatesByPool: TypeAlias = Mapping[str, Sequence[ContractRate]]


def rates_now(connection: Connection, pool: str, now_ms: int) -> list[ContractRate]:
    """The contracts of a pool that are in force now, by the clock and not by their state, which follows the
    clock.
    """
    return _rates(connection, now_ms, contract.c.pool == pool).get(pool, [])


def rates_by_pool(connection: Connection, now_ms: int) -> dict[str, list[ContractRate]]:
    """The same of every pool that has such contracts, in one query."""
    return _rates(connection, now_ms)


def _rates(connection: Connection, now_ms: int, *among: ColumnElement[bool]) -> dict[str, list[ContractRate]]:
    rate = (
        select(contract_step.c.mu_s)
        .where(contract_step.c.contract_id == contract.c.contract_id, contract_step.c.from_ms <= now_ms)
        .order_by(contract_step.c.from_ms.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(contract, rate.label("mu_s"))
        .where(
            *among,
            contract.c.state.in_(BINDING),
            contract.c.starts_ms <= now_ms,
            contract.c.effective_end_ms > now_ms,
        )
        .order_by(contract.c.contract_id)
    )
    found: dict[str, list[ContractRate]] = {}
    for row in rows:
        found.setdefault(row.pool, []).append(_rate(row, now_ms))
    return found


def _rate(row: Row[Any], now_ms: int) -> ContractRate:
    begun = [clause for clause in row.later if clause["from_ms"] <= now_ms]
    now = begun[-1] if begun else {"overflow": row.overflow, "spill_mu_s": row.spill_mu_s}
    return ContractRate(
        contract_id=row.contract_id,
        tenant=row.tenant_id,
        mu_s=row.mu_s,
        overflow=now["overflow"],
        spill_mu_s=now["spill_mu_s"],
        end_ms=row.effective_end_ms,
        burst_ms=row.burst_ms,
    )
