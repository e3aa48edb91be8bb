"""Allocates the busy cells that this process holds, side by side, so that a slow or broken cell holds up no
other.

It owns which cells are due and which have failed. Without any allocator the last figures stay in force.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, TypeAlias

import redis
from sqlalchemy import Engine

from billing.allocator.leases import CellLeases
from billing.allocator.round import Round, allocate
from billing.allocator.supply import (
    Cell,
    PoolSupply,
    RatesInForce,
    Supply,
    SupplyReader,
    SupplyState,
    signed_alone,
)
from billing.fleet.registered import read_registered_now
from billing.metrics import BillingMetrics
from billing.usage.busy_cells import BusyCells
from billing.wire.instance_entry import EngineLoad, InstanceEntry
from billing.wire.lease_watch import LeaseWatch

_log = logging.getLogger(__name__)

# Rounds mostly wait for Redis and PostgreSQL. More rounds than spare connections would wait for connections.
_SIDE_BY_SIDE: Final = 8
# A quiet cell is allocated this often nevertheless, which corrects anything unforeseen.
_STILL_S: Final = 10.0
# The pool's supply, the sign that Redis has lost something, and the instances with their load.
_Basis: TypeAlias = tuple[PoolSupply, tuple[object, ...], list[tuple[str, str, EngineLoad]]]


class Allocator:
    """One per process; any number may run. `owner`: its name among them. The client must not decode.
    `patience_s`: how long a call waits for its rounds, None for all of them. A round that takes longer runs
    on beside the next call. `look`: what SQL has, as another loop has just read it; where it gives None, the
    allocator asks.
    """

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        metrics: BillingMetrics,
        *,
        owner: str,
        rates_in_force: RatesInForce = signed_alone,
        busy: BusyCells | None = None,
        patience_s: float | None = None,
        look: Callable[[], SupplyState | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._look = look
        self._client = client
        self._metrics = metrics.capacity
        self._busy = busy or BusyCells(client)
        self._leases = CellLeases(client, owner)
        self._instance_leases = LeaseWatch()
        self._supply = SupplyReader(engine, rates_in_force)
        self._patience_s = patience_s
        self._threads = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="allocator")
        self._running: dict[str, Future[Round | None]] = {}
        # The inputs of a cell's last round, if the next one would find the same, and until when that is
        # trusted.
        self._still: dict[str, tuple[_Basis, float]] = {}
        self._failing: set[str] = set()

    def allocate_once(self, now_ms: int | None = None) -> list[Round]:
        """Run a round of each busy cell that this process holds. `now_ms` is Redis's clock unless given.
        Raises the error if all of them failed.
        """
        held = self._share(now_ms)
        rounds, failures = [], []
        wait(self._running.values(), timeout=self._patience_s)
        for cell in [cell for cell, future in self._running.items() if future.done()]:
            try:
                if (done := self._running.pop(cell).result()) is not None:
                    self._metrics.round(done)
                    if done.failure is not None:
                        raise done.failure
                    rounds.append(done)
                    if not done.is_still:
                        self._still.pop(cell, None)
                    self._works(cell)
            except Exception as exc:
                failures.append(exc)
                self._still.pop(cell, None)
                self._failed(cell, exc)
        self._failing &= set(held)
        self._metrics.held(held, self._failing)
        if failures and not rounds:
            # All cells failed: the loop logs it and waits.
            raise failures[0]
        return rounds

    def close(self) -> None:
        """Let another process have the cells, once the rounds that have begun are over. Raises
        redis.RedisError.
        """
        for future in self._running.values():
            future.cancel()
        wait(self._running.values())
        self._running.clear()
        self._leases.leave()

    def _share(self, now_ms: int | None) -> list[str]:
        """Renew the lease, read the supply, and begin a round of each held cell that has none under way.
        Returns the held cells.
        """
        clock_ms, instances = read_registered_now(self._client, self._instance_leases.holds)
        supply = self._supply.read(clock_ms if now_ms is None else now_ms, self._look())
        busy = {
            *self._busy.names(),
            *supply.with_contracts(),
            *(each.cell for each in instances),
        } & supply.cells.keys()
        held = self._leases.share(sorted(busy), self._running.keys() & busy)
        ready: dict[str, list[InstanceEntry]] = defaultdict(list)
        for each in instances:
            cell_ = supply.cells.get(each.cell)
            if each.status == "ready" and cell_ is not None and each.pool == cell_.pool:
                ready[each.cell].append(each)
        quiet, marks = self._busy.quiet(), self._busy.marks()
        self._still = {cell: self._still[cell] for cell in held if cell in self._still}
        for cell in held:
            machines = ready.get(cell, ())
            basis = (
                supply.of(cell_ := supply.cells[cell]),
                marks,
                [(each.instance, each.epoch, each.load) for each in machines],
            )
            if cell in self._running or (cell in quiet and self._is_still(cell, basis)):
                continue
            self._still[cell] = basis, self._clock() + _STILL_S
            self._running[cell] = self._threads.submit(self._round, cell_, supply, machines, now_ms)
        return held

    def _is_still(self, cell: str, basis: "_Basis") -> bool:
        """Whether a round of a quiet cell would only write again what the last one has written."""
        before, until_s = self._still.get(cell, (None, 0.0))
        return before == basis and self._clock() < until_s

    def _round(
        self, cell: Cell, supply: Supply, ready: Sequence[InstanceEntry], now_ms: int | None
    ) -> Round | None:
        return allocate(self._engine, self._client, cell, supply.of(cell), ready, now_ms)

    def _works(self, cell: str) -> None:
        if cell in self._failing:
            self._failing.discard(cell)
            _log.warning("cell %s is allocated again", cell)

    def _failed(self, cell: str, exc: Exception) -> None:
        """Log a failure once and not every second; the metric shows how long it lasts."""
        if cell not in self._failing:
            self._failing.add(cell)
            _log.error("cell %s cannot be allocated; its last numbers hold", cell, exc_info=exc)
