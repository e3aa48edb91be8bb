"""Decides for each scaled pool how many instances it should have, again and again, in the one process that
leads. It tells Prometheus and SQL; launchers and operators act on it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import redis
from sqlalchemy import Connection, Engine

from billing.allocator.cell_state import read_state
from billing.allocator.supply import CalibrationInForce, Cell, read_calibrations, read_cells
from billing.autoscaling import store
from billing.autoscaling.decide import (
    SLOTS_GUESSED,
    Decision,
    Load,
    Recent,
    decide,
    needed_by_contracts,
    needed_by_load,
    taken_now,
)
from billing.autoscaling.store import Scaled
from billing.contracts.commitments import read_position
from billing.contracts.position import Position
from billing.fleet.registered import read_registered_now
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry


@dataclass(frozen=True, slots=True)
class _Seen:
    """What all decisions of a round are made of."""

    now_ms: int
    registered: Sequence[InstanceEntry]
    calibrations: Mapping[str, CalibrationInForce]
    cells: Collection[Cell]


class Autoscaler:
    """Of one process. `show`: gets the instances of each scaled pool."""

    def __init__(
        self, engine: Engine, client: redis.Redis, show: Callable[[Mapping[str, int]], None]
    ) -> None:
        self._engine = engine
        self._client = client
        self._show = show
        self._recent: dict[str, Recent] = {}

    def round(self) -> None:
        """One decision for each. A process that has just begun to lead takes the last decision for the need
        of that moment. Raises redis.RedisError, SQLAlchemyError.
        """
        desired: dict[str, int] = {}
        with self._engine.begin() as connection:
            if pools := store.list_all(connection):
                seen = self._look(connection)
                for scaled in pools:
                    decision = self._decide(connection, scaled, seen)
                    desired[scaled.pool] = decision.instances
                    if decision != scaled.decision:
                        store.decided(connection, scaled.pool, decision)
        self._recent = {pool: recent for pool, recent in self._recent.items() if pool in desired}
        self._show(desired)

    def _look(self, connection: Connection) -> _Seen:
        now_ms, registered = read_registered_now(self._client)
        return _Seen(now_ms, registered, read_calibrations(connection), read_cells(connection).values())

    def _decide(self, connection: Connection, scaled: Scaled, seen: _Seen) -> Decision:
        pool, now_ms = scaled.pool, seen.now_ms
        position = read_position(connection, pool, now_ms)
        load = self._load(pool, seen)
        if pool not in self._recent:
            self._recent[pool] = Recent()
            if scaled.decision is not None:
                self._recent[pool].add(now_ms, scaled.decision.instances)
        recent = self._recent[pool]
        recent.add(now_ms, needed_by_load(load))
        return decide(
            bounds=scaled.bounds,
            machines=_machines(position, scaled, now_ms),
            contracts=needed_by_contracts(position, now_ms),
            load=load,
            recent=recent.most,
        )

    def _load(self, pool: str, seen: _Seen) -> Load:
        measured = seen.calibrations.get(pool)
        slots = SLOTS_GUESSED if measured is None else max(1, measured.sequences)
        ours = {entry.instance for entry in seen.registered if entry.pool == pool and not entry.is_provider}
        sequences = flex = 0
        for cell in seen.cells:
            if cell.pool == pool:
                state = read_state(self._client, cell.cell, [])
                flights = [flight for instance, flight in state.in_flight.items() if instance in ours]
                sequences += state.on_demand_requests
                sequences += sum(flight.reserved + flight.on_demand for flight in flights)
                flex += state.flex_waits + sum(flight.flex for flight in flights)
        return Load(
            max(sequences, min(flex, 1)), slots, woken=bool(self._client.exists(redis_keys.wanted(pool)))
        )


def _machines(position: Position, scaled: Scaled, now_ms: int) -> int:
    """Those of the pool that other uses do not have. Where none were declared, as many as the maximum."""
    return max(0, (position.instances or scaled.bounds.most) - taken_now(position, now_ms))
