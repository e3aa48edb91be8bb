"""Allocates all cells, once a call: those that this process leads, each by itself, so that a fault in one does not stop the others.

Owns who is led and what failed. Without any allocator the last numbers hold.
"""

import logging
from collections.abc import Sequence

import redis
from sqlalchemy import Engine

from billing import redis_keys
from billing.allocator import rebuild
from billing.allocator.round import RatesInForce, Round, allocate
from billing.allocator.supply import Calibration, Cell, read_calibrations, read_cells
from billing.contracts.rates import rates_now
from billing.leadership import Leadership
from billing.metrics import BillingMetrics
from billing.registered import Registered, read_registered

_log = logging.getLogger(__name__)


class Allocator:
    """One a process; any number may run. `owner` names it in the locks. The client must not decode."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        metrics: BillingMetrics,
        *,
        owner: str,
        rates_in_force: RatesInForce = rates_now,
    ) -> None:
        self._engine = engine
        self._client = client
        self._metrics = metrics.capacity
        self._leadership = Leadership(client, owner)
        self._rates_in_force = rates_in_force
        self._losses = rebuild.Losses()
        self._failing: set[str] = set()

    def allocate_once(self, now_ms: int | None = None) -> list[Round]:
        """A round of each cell that it leads; `now_ms` is Redis's clock unless given. Raises what all of them failed with."""
        with self._engine.connect() as connection:
            cells = read_cells(connection)
            calibrations = read_calibrations(connection)
        registered = read_registered(self._client)
        run = rebuild.run_of(self._client)
        rounds, failures, led = [], [], set()
        for cell in cells:
            try:
                if self._leadership.hold(redis_keys.allocator_lock(cell.cell)):
                    led.add(cell.cell)
                    rounds.append(self._allocate(cell, calibrations, registered, now_ms, run))
            except Exception as exc:
                failures.append(exc)
                self._failed(cell.cell, exc)
        self._metrics.led({cell.cell: cell.cell in led for cell in cells}, {each.cell.cell for each in rounds})
        if failures and not rounds:
            # Nothing works, which is for the loop to say and to wait out.
            raise failures[0]
        return rounds

    def close(self) -> None:
        """Let another process lead at once. Raises redis.RedisError."""
        self._leadership.release_all()

    def _allocate(
        self,
        cell: Cell,
        calibrations: dict[str, Calibration],
        registered: Sequence[Registered],
        now_ms: int | None,
        run: str,
    ) -> Round:
        moment_ms = self._clock_ms() if now_ms is None else now_ms
        done = allocate(
            self._engine, self._client, cell, calibrations.get(cell.pool), registered, moment_ms, self._rates_in_force
        )
        if self._losses.due(self._client, cell.cell, run, moment_ms):
            self._rebuild(cell, moment_ms, run)
        if cell.cell in self._failing:
            self._failing.discard(cell.cell)
            _log.warning("cell %s is allocated again", cell.cell)
        self._metrics.round(done)
        return done

    def _rebuild(self, cell: Cell, moment_ms: int, run: str) -> None:
        with self._engine.connect() as connection:
            rates = self._rates_in_force(connection, cell.pool, moment_ms)
            levels = rebuild.rebuild(connection, self._client, cell, rates, moment_ms, run)
        self._metrics.rebuilt.labels(cell.cell).inc()
        _log.warning(
            "cell %s: Redis was started, emptied or exchanged; %d levels held against the ledger", cell.cell, levels
        )

    def _clock_ms(self) -> int:
        now_s, now_us = self._client.time()
        return int(now_s) * 1000 + int(now_us) // 1000

    def _failed(self, cell: str, exc: Exception) -> None:
        """Once, not every second: the metric shows how long it lasts."""
        if cell not in self._failing:
            self._failing.add(cell)
            _log.error("cell %s cannot be allocated; its last numbers hold", cell, exc_info=exc)
