"""The route that says whether the control plane works. It is public, so it says no more than that."""

from typing import Any

import redis
from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from billing.api.capacity_answers import HealthAnswer
from billing.api.control import Control, ControlPlane
from billing.catalogue import outbox

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
def healthz(control: Control, response: Response) -> dict[str, Any]:
    """200 if both stores answer, else 503. `projection_pending`: changes that gateways have not got yet."""
    pending = _pending(control)
    redis_up = _redis_up(control)
    up = pending is not None and redis_up
    response.status_code = 200 if up else 503
    return {
        "status": "ok" if up else "degraded",
        "database": "down" if pending is None else "ok",
        "redis": "ok" if redis_up else "down",
        "projection_pending": pending,
    }


def _pending(control: ControlPlane) -> int | None:
    """None if the database does not answer."""
    try:
        with control.reading() as connection:
            return outbox.count(connection)
    except SQLAlchemyError:
        return None


def _redis_up(control: ControlPlane) -> bool:
    try:
        control.redis.ping()
    except redis.RedisError:
        return False
    return True
