"""Gives back what requests hold of budgets that will never be in the ledger: their gateway died between
holding and reserving, or Redis lost their reservation. And what those hold that are in the ledger, where the
process that recorded them died before it said so.
"""

import json
from typing import Any, Final

import redis
from sqlalchemy import Engine

from billing.catalogue import budget_publication, budgets
from billing.ledger.event_days import recorded
from billing.wire import redis_keys
from billing.wire.redis_clock import now_ms

# Longer than a gateway takes from holding to reserving.
_PATIENCE_MS: Final = 60_000


def sweep(engine: Engine, client: redis.Redis) -> None:
    """Look once at everything that is held. Raises redis.RedisError, SQLAlchemyError."""
    with engine.connect() as connection:
        before_ms = now_ms(client) - _PATIENCE_MS
        ended: dict[str, list[str]] = {}
        for tenant_id in budgets.of_tenants(connection, None):
            held = _held_before(client, tenant_id, before_ms)
            known = recorded(connection, held)
            gone = [each for each, cell in held.items() if each in known or _is_gone(client, cell, each)]
            if gone:
                ended[tenant_id] = gone
        if ended:
            budget_publication.publish(client, connection, set(ended), ended)


def _held_before(client: redis.Redis, tenant_id: str, before_ms: int) -> dict[str, str]:
    """The requests that have held something since before then, each with its cell."""
    found: Any = client.hgetall(redis_keys.budget_keys(tenant_id)[1])
    entries = {request_id.decode(): json.loads(entry) for request_id, entry in found.items()}
    return {each: entry["cell"] for each, entry in entries.items() if entry["at_ms"] < before_ms}


def _is_gone(client: redis.Redis, cell: str, request_id: str) -> bool:
    """It has no reservation, nor has it ended lately: then its event may be on its way to the ledger."""
    return not client.exists(redis_keys.reservation(cell, request_id))
