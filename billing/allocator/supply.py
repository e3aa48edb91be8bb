"""What SQL says of all cells at one moment: which cells there are, what their instances can do, what is
signed, and what has ended. It only reads.

One reading per second serves all cells, however many there are. For what has not changed it only asks whether
it has.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy import Connection, bindparam, exists, func, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing.contracts.rates import ContractRate, RatesByPool, rates_by_pool
from billing.schema.capacity import calibration, contract
from billing.schema.catalogue import model

# As long as the hash of a contract lives after it was last written.
_ENDED_LATELY_MS: Final = 7 * 86_400_000

# What contracts may have at a moment, out of what is signed: less where a reclaim cuts.
RatesInForce: TypeAlias = Callable[[Connection, RatesByPool, int], RatesByPool]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell and the pool to which all of its instances belong."""

    cell: str
    pool: str


@dataclass(frozen=True, slots=True)
class CalibrationInForce:
    """What one instance of a pool can do."""

    capacity_mu_s: int
    sequences: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class EndedContract:
    """A contract that has ended, and when."""

    contract_id: str
    tenant: str
    end_ms: int


@dataclass(frozen=True, slots=True)
class PoolSupply:
    """One pool: its calibration, the contracts in force as signed and as they hold now, and the contracts
    that ended recently, the latest first.
    """

    calibration: CalibrationInForce | None = None
    signed: Sequence[ContractRate] = ()
    rates: Sequence[ContractRate] = ()
    ended: Sequence[EndedContract] = ()


@dataclass(frozen=True, slots=True)
class Supply:
    """All cells by name, and all pools that have something."""

    cells: Mapping[str, Cell]
    pools: Mapping[str, PoolSupply]

    def of(self, cell: Cell) -> PoolSupply:
        """What its pool has."""
        return self.pools.get(cell.pool, PoolSupply())

    def with_contracts(self) -> list[str]:
        """Cells that have evidence to keep, whether they have a machine or not."""
        return [name for name, cell in self.cells.items() if (pool := self.of(cell)).signed or pool.ended]


def signed_alone(_connection: Connection, signed: RatesByPool, _now_ms: int) -> RatesByPool:
    """What is signed holds: no reclaim cuts it."""
    return signed


class SupplyReader:
    """Reads the supply once a second. It keeps cells and calibrations until there are new ones."""

    def __init__(self, rates_in_force: RatesInForce = signed_alone) -> None:
        self._rates_in_force = rates_in_force
        self._cells: dict[str, Cell] = {}
        self._models: tuple[int, int | None] | None = None
        self._calibrations: dict[str, CalibrationInForce] = {}
        self._calibrated: int | None = None

    def read(self, connection: Connection, now_ms: int) -> Supply:
        """As of this moment. Raises SQLAlchemyError."""
        changed = connection.execute(_CHANGED, {"ended_after_ms": now_ms - _ENDED_LATELY_MS}).one()
        if self._models != (changed.models, changed.model_changed_ms):
            self._cells = read_cells(connection)
            self._models = changed.models, changed.model_changed_ms
        if self._calibrated != changed.calibrations:
            self._calibrations = read_calibrations(connection)
            self._calibrated = changed.calibrations
        signed = rates_by_pool(connection, now_ms) if changed.contracts else {}
        rates = self._rates_in_force(connection, signed, now_ms) if signed else {}
        ended = _read_ended(connection, now_ms) if changed.contracts else {}
        pools = {
            pool: PoolSupply(
                self._calibrations.get(pool), signed.get(pool, ()), rates.get(pool, ()), ended.get(pool, ())
            )
            for pool in {*signed, *ended, *self._calibrations}
        }
        return Supply(self._cells, pools)


# Models and calibrations are only ever added. Their ids are random: none of them says that another one is
# new.
_CHANGED: Final = select(
    select(func.count()).select_from(model).scalar_subquery().label("models"),
    select(func.max(model.c.updated_ms)).scalar_subquery().label("model_changed_ms"),
    select(func.count()).select_from(calibration).scalar_subquery().label("calibrations"),
    exists(
        select(contract.c.contract_id).where(contract.c.effective_end_ms > bindparam("ended_after_ms"))
    ).label("contracts"),
)


def read_cells(connection: Connection) -> dict[str, Cell]:
    """Every cell of the catalogue, in the order of their names."""
    query = select(model.c.cell, model.c.pool).distinct().order_by(model.c.cell)
    return {row.cell: Cell(row.cell, row.pool) for row in connection.execute(query)}


def read_calibrations(connection: Connection) -> dict[str, CalibrationInForce]:
    """The newest of each pool."""
    query = (
        select(
            calibration.c.pool, calibration.c.capacity_mu_s, calibration.c.sequences, calibration.c.created_ms
        )
        .ext(distinct_on(calibration.c.pool))
        .order_by(calibration.c.pool, calibration.c.created_ms.desc(), calibration.c.calibration_id.desc())
    )
    return {
        row.pool: CalibrationInForce(row.capacity_mu_s, row.sequences, row.created_ms)
        for row in connection.execute(query)
    }


def _read_ended(connection: Connection, now_ms: int) -> dict[str, list[EndedContract]]:
    """Contracts that ended of late, the last one first."""
    query = (
        select(contract.c.contract_id, contract.c.tenant_id, contract.c.pool, contract.c.effective_end_ms)
        .where(
            contract.c.state != "draft",
            contract.c.effective_end_ms <= now_ms,
            contract.c.effective_end_ms > now_ms - _ENDED_LATELY_MS,
        )
        .order_by(contract.c.effective_end_ms.desc(), contract.c.contract_id)
    )
    found: dict[str, list[EndedContract]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.pool].append(EndedContract(row.contract_id, row.tenant_id, row.effective_end_ms))
    return found
