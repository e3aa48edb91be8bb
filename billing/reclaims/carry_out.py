"""What time does to reclaims: they drain, what is still open at the deadline is stopped, they are done; and what they cut is recorded.

A step takes each reclaim in a transaction of its own and may be repeated; several processes may step at once.
"""

import logging
from typing import Final

import redis
from sqlalchemy import Connection, Engine, or_, select

from billing import outbox
from billing.contracts.commitments import lock_position
from billing.contracts.store import now_ms as clock_ms
from billing.outbox import ChangeKind
from billing.projection import Projector
from billing.reclaims import orders, shortfall, store
from billing.reclaims.occupancy import OpenRequest, read_open_on
from billing.reclaims.plan import DRAIN_LEAD_MS, drain_from_ms
from billing.reclaims.store import Reclaim
from billing.schema.capacity import reclaim as table

_log = logging.getLogger(__name__)

# A gateway learns within half a second that an instance drains; what it had begun to send there shows in the cell well within this.
SETTLE_MS: Final = 2_000


class Reclaimer:
    """Carries reclaims out, once a call. The client must not decode."""

    def __init__(self, engine: Engine, client: redis.Redis, projector: Projector) -> None:
        self._engine = engine
        self._client = client
        self._projector = projector

    def step(self, now_ms: int | None = None) -> bool:
        """Bring every reclaim up to the clock. True: there is more to do at once. Raises redis.RedisError, SQLAlchemyError."""
        with self._engine.connect() as connection:
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
        # In the order in which whoever orders and releases takes them.
        position = lock_position(connection, before.pool, now_ms)
        found = store.lock(connection, reclaim_id)
        if found.state == "planned":
            if now_ms < drain_from_ms(position, found.instances, found.by_ms, now_ms):
                return
            found = orders.drain(
                connection, found, orders.choose_now(connection, self._client, found, position), now_ms
            )
            _log.info("reclaim %s: draining %s", reclaim_id, ", ".join(found.chosen) or "nothing")
        if found.state == "draining" and now_ms >= found.by_ms:
            self._end(connection, found, now_ms)

    def _end(self, connection: Connection, found: Reclaim, now_ms: int) -> None:
        """Stop what is open past the deadline; with nothing open, and nothing on its way there any more, it is done."""
        requests = read_open_on(self._client, found.pool, found.chosen)
        history = store.history(connection, found.reclaim_id)
        if requests:
            told = {
                each["request"] for entry in history if entry.change == "stopped" for each in entry.detail["requests"]
            }
            new = [request for request in requests if request.request_id not in told]
            if new:
                detail = {"requests": [_recorded(request) for request in new]}
                store.append(connection, found.reclaim_id, "stopped", detail, now_ms=now_ms)
                _log.info("reclaim %s: stopping %d requests", found.reclaim_id, len(new))
            # Said again while it is open: its gateway may not have known it yet.
            for request in requests:
                outbox.record(connection, ChangeKind.STOP, request.request_id)
            return
        drained_ms = max((entry.at_ms for entry in history if entry.change == "draining"), default=now_ms)
        if found.chosen and now_ms < drained_ms + SETTLE_MS:
            return
        store.move(connection, found, "done", {}, now_ms=now_ms)
        _log.info("reclaim %s is done", found.reclaim_id)


def _due(connection: Connection, now_ms: int) -> list[str]:
    """Those that may have something to do."""
    query = select(table.c.reclaim_id).where(
        or_(
            (table.c.state == "planned") & (table.c.by_ms <= now_ms + DRAIN_LEAD_MS),
            (table.c.state == "draining") & (table.c.by_ms <= now_ms),
        )
    )
    return list(connection.execute(query.order_by(table.c.by_ms, table.c.reclaim_id)).scalars())


def _recorded(request: OpenRequest) -> dict[str, str | None]:
    return {
        "request": request.request_id, "tenant": request.tenant, "class": request.class_, "contract": request.contract,
        "instance": request.instance,
    }  # fmt: skip
