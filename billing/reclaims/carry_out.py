"""Advances reclaims with time: they drain, are cleared, are done; and records what they cut.

Each step handles each reclaim in a transaction of its own and may be repeated; several processes may step at
once.
"""

import logging

import redis
from sqlalchemy import Connection, Engine, or_, select

from billing.catalogue.projection import Projector
from billing.contracts.commitments import lock_position
from billing.contracts.store import now_ms as clock_ms
from billing.reclaims import orders, shortfall, store
from billing.reclaims.clear import PREEMPT_LEAD_MS, clear
from billing.reclaims.plan import DRAIN_LEAD_MS, drain_from_ms
from billing.schema.capacity import reclaim as table

_log = logging.getLogger(__name__)


class Reclaimer:
    """Advances all reclaims, once per call. The client must not decode."""

    def __init__(self, engine: Engine, client: redis.Redis, projector: Projector) -> None:
        self._engine = engine
        self._looks = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._client = client
        self._projector = projector

    def step(self, now_ms: int | None = None) -> bool:
        """Advance every reclaim to the clock. Returns True if there is more to do at once. Raises
        redis.RedisError, SQLAlchemyError.
        """
        with self._looks.connect() as connection:
            moment_ms = clock_ms(connection) if now_ms is None else now_ms
            due = _due(connection, moment_ms)
            pools = shortfall.pools_cut(connection, moment_ms)
        for reclaim_id in due:
            with self._engine.begin() as connection:
                self._carry_out(connection, reclaim_id, moment_ms)
        if due:
            self._projector.deliver()
        more = False
        for pool in pools:
            with self._engine.begin() as connection:
                more |= shortfall.record(connection, pool, moment_ms)
        return more

    def _carry_out(self, connection: Connection, reclaim_id: str, now_ms: int) -> None:
        before = store.find(connection, reclaim_id)
        # In the order in which orders and releases lock them.
        position = lock_position(connection, before.pool, now_ms)
        found = store.lock(connection, reclaim_id)
        if found.state == "planned":
            if now_ms < drain_from_ms(position, found.instances, found.by_ms, now_ms):
                return
            found = orders.drain(
                connection, found, orders.choose_now(connection, self._client, found, position), now_ms
            )
            _log.info("reclaim %s: draining %s", reclaim_id, ", ".join(found.chosen) or "nothing")
        if found.state == "draining":
            clear(connection, self._client, found, now_ms)


def _due(connection: Connection, now_ms: int) -> list[str]:
    """Those that may have something to do."""
    query = select(table.c.reclaim_id).where(
        or_(
            (table.c.state == "planned") & (table.c.by_ms <= now_ms + DRAIN_LEAD_MS),
            (table.c.state == "draining") & (table.c.by_ms <= now_ms + PREEMPT_LEAD_MS),
        )
    )
    return list(connection.execute(query.order_by(table.c.by_ms, table.c.reclaim_id)).scalars())
