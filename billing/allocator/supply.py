"""What SQL says of the cells to allocate: which there are, what their machines can do, which contracts have ended. Reads only."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing.schema.capacity import calibration, contract
from billing.schema.catalogue import model

# As long as the hash of a contract lives after it was last written.
_ENDED_LATELY_MS: Final = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell and the pool whose machines it has: all of them."""

    cell: str
    pool: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one machine of a pool can do."""

    capacity_mu_s: int
    sequences: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A contract that is over, and since when."""

    contract_id: str
    tenant: str
    end_ms: int


def read_cells(connection: Connection) -> list[Cell]:
    """Every cell of the catalogue."""
    query = select(model.c.cell, model.c.pool).distinct().order_by(model.c.cell)
    return [Cell(row.cell, row.pool) for row in connection.execute(query)]


def read_calibrations(connection: Connection) -> dict[str, Calibration]:
    """The newest of each pool."""
    query = (
        select(calibration)
        .ext(distinct_on(calibration.c.pool))
        .order_by(calibration.c.pool, calibration.c.created_ms.desc(), calibration.c.calibration_id.desc())
    )
    return {
        row.pool: Calibration(row.capacity_mu_s, row.sequences, row.created_ms) for row in connection.execute(query)
    }


def read_ended(connection: Connection, pool: str, now_ms: int) -> list[Ended]:
    """Contracts of a pool that ended of late, the last one first."""
    query = (
        select(contract.c.contract_id, contract.c.tenant_id, contract.c.effective_end_ms)
        .where(
            contract.c.pool == pool,
            contract.c.state != "draft",
            contract.c.effective_end_ms <= now_ms,
            contract.c.effective_end_ms > now_ms - _ENDED_LATELY_MS,
        )
        .order_by(contract.c.effective_end_ms.desc(), contract.c.contract_id)
    )
    return [Ended(row.contract_id, row.tenant_id, row.effective_end_ms) for row in connection.execute(query)]
