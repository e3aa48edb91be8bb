"""What SQL says of all cells at one moment: which cells there are, what their instances can do, what is
signed, and what has ended. It only reads.

One reading per second serves all cells, however many there are. For what has not changed it only asks whether
it has.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, Select, exists, func, literal, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing.contracts.rates import ContractRate, RatesByPool, rates_by_pool
from billing.moments import DAY_MS
from billing.schema.capacity import calibration, contract
from billing.schema.catalogue import model

# As long as a contract's hash lives after its last write.
_ENDED_LATELY_MS: Final = 7 * DAY_MS

# The rates that contracts may use now: the signed ones, less what a reclaim cuts.
RatesInForce: TypeAlias = Callable[[Connection, RatesByPool, int], RatesByPool]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell and its pool. Instances of another pool in the cell (those that pool, of a model that also
    generates) have no part in what is divided or sold.
    """

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
        """The supply of this cell's pool."""
        return self.pools.get(cell.pool, PoolSupply())

    def with_contracts(self) -> list[str]:
        """Cells that have evidence to record, whether they have an instance or not."""
        return [name for name, cell in self.cells.items() if (pool := self.of(cell)).signed or pool.ended]


def signed_alone(_connection: Connection, signed: RatesByPool, _now_ms: int) -> RatesByPool:
    """What is signed holds: no reclaim cuts it."""
    return signed


@dataclass(frozen=True, slots=True)
class SupplyState:
    """What says that SQL has something new. Models and calibrations are only ever added, or changed at a
    later moment. `contracts`: there are some that matter, which are then read each time.
    """

    models: int
    model_changed_ms: int | None
    calibrations: int
    contracts: bool


def select_supply_state(now_ms: ColumnElement[int]) -> Select[int, int | None, int, bool]:
    """A row of these, for whoever asks for more at once."""
    lately = contract.c.effective_end_ms > now_ms - _ENDED_LATELY_MS
    return select(
        select(func.count()).select_from(model).scalar_subquery().label("models"),
        select(func.max(model.c.updated_ms)).scalar_subquery().label("model_changed_ms"),
        select(func.count()).select_from(calibration).scalar_subquery().label("calibrations"),
        exists(select(contract.c.contract_id).where(lately)).label("sold"),
    )


class SupplyReader:
    """Reads the supply. It keeps cells and calibrations until there are new ones."""

    def __init__(self, engine: Engine, rates_in_force: RatesInForce = signed_alone) -> None:
        # A look is one statement: no transaction about it.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._rates_in_force = rates_in_force
        self._cells: Mapping[str, Cell] = {}
        self._calibrations: Mapping[str, CalibrationInForce] = {}
        self._seen: SupplyState | None = None

    def read(self, now_ms: int, state: SupplyState | None = None) -> Supply:
        """As of `state`, or of this moment. SQL is not asked where it says that nothing has changed. Raises
        SQLAlchemyError.
        """
        if state is not None and state == self._seen and not state.contracts:
            return self._put_together({}, {}, {})
        with self._engine.connect() as connection:
            if state is None:
                state = SupplyState(*connection.execute(select_supply_state(literal(now_ms))).one())
            return self._read(connection, now_ms, state)

    def _read(self, connection: Connection, now_ms: int, state: SupplyState) -> Supply:
        if state != self._seen:
            self._cells, self._calibrations = read_cells(connection), read_calibrations(connection)
            self._seen = state
        if not state.contracts:
            return self._put_together({}, {}, {})
        signed = rates_by_pool(connection, now_ms)
        rates = self._rates_in_force(connection, signed, now_ms) if signed else {}
        return self._put_together(signed, rates, _read_ended(connection, now_ms))

    def _put_together(
        self, signed: RatesByPool, rates: RatesByPool, ended: Mapping[str, Sequence[EndedContract]]
    ) -> Supply:
        pools = {
            pool: PoolSupply(
                self._calibrations.get(pool), signed.get(pool, ()), rates.get(pool, ()), ended.get(pool, ())
            )
            for pool in {*signed, *ended, *self._calibrations}
        }
        return Supply(self._cells, pools)


def read_cells(connection: Connection) -> dict[str, Cell]:
    """Every cell of the catalogue, by name."""
    query = select(model.c.cell, model.c.pool).distinct().order_by(model.c.cell)
    return {row.cell: Cell(row.cell, row.pool) for row in connection.execute(query)}


def read_calibrations(connection: Connection) -> dict[str, CalibrationInForce]:
    """The newest calibration of each pool."""
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
    """Contracts that ended recently, the latest first."""
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
