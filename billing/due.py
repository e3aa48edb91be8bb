"""What SQL has for the loops to do, in one statement that several of them share, because each asks every
second and nearly always finds nothing.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine

from billing.allocator.supply import SupplyState, select_supply_state
from billing.catalogue import budgets
from billing.catalogue.projection import ProjectionState, select_state
from billing.contracts.store import select_any_due
from billing.reclaims.store import select_any_open
from billing.schema.clock import NOW_MS

# Loops wake together and share a reading that is at most this old.
_SHARED_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Due:
    """`contracts`: a contract's state is behind the clock. `reclaims`: a reclaim takes machines, now or
    later. `budgets`: a period or a raise of a budget has ended.
    """

    contracts: bool
    reclaims: bool
    budgets: bool
    projection: ProjectionState
    supply: SupplyState


class DueReader:
    """One per process, for all its threads."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._clock = clock
        self._turn = threading.Lock()
        self._seen: tuple[float, Due] | None = None

    def read(self) -> Due:
        """As of now. Raises SQLAlchemyError."""
        asked_s = self._clock()
        with self._turn:
            if self._seen is not None and asked_s - self._seen[0] < _SHARED_S:
                return self._seen[1]
            begun_s = self._clock()
            with self._engine.connect() as connection:
                row = connection.execute(_DUE).one()
            due = Due(
                row.contracts,
                row.reclaims,
                row.budgets,
                ProjectionState(row.source, row.version, row.waits),
                SupplyState(row.models, row.model_changed_ms, row.calibrations, row.sold),
            )
            self._seen = begun_s, due
            return due


_DUE: Final = select_state().add_columns(
    select_any_due().scalar_subquery().label("contracts"),
    select_any_open().scalar_subquery().label("reclaims"),
    budgets.select_any_due().scalar_subquery().label("budgets"),
    *select_supply_state(NOW_MS).selected_columns,
)
