"""The route that orders a worker to start its engine again."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from billing.accounts import audit_log
from billing.api.catalogue_answers import RestartOrdered
from billing.api.control import Control
from billing.api.fields import Body, NamePath
from billing.api.query import KNOWN_QUERY
from billing.catalogue import instances
from billing.fleet.registered import read_registered
from billing.refusals import Conflict, NotFound
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceStatus

router = APIRouter(prefix="/admin/v1", tags=["instances"], dependencies=[KNOWN_QUERY])


class Restart(Body):
    """`drain_seconds`: how long requests in flight may take to end before they are cut off."""

    drain_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600


@router.post("/instances/{instance:path}/restart", status_code=202, response_model=RestartOrdered)
def restart(instance: NamePath, body: Restart, control: Control, response: Response) -> dict[str, Any]:
    """Order the worker of a ready instance to drain it, to stop its engine, and to start it again from what
    catalogue and disk then have. The new engine has another epoch. Ordering it again changes nothing.
    """
    with control.reading() as connection:
        by_hand = instances.shown_ids(connection)
    if instance in by_hand:
        raise Conflict(
            f"Instance {instance!r} was added by hand: restart its engine where it was started.",
            code="added_by_hand",
        )
    entry = next((each for each in read_registered(control.redis) if each.instance == instance), None)
    if entry is None:
        raise NotFound(f"There is no instance {instance!r} now.", param="instance")
    if entry.status is not InstanceStatus.READY:
        raise Conflict(
            f"Instance {instance!r} is {entry.status.value}, and only a ready one can be restarted.",
            code="not_ready",
        )
    order = {"epoch": entry.epoch, "drain_s": body.drain_seconds}
    # Logged first: nothing is ordered that is in no log.
    with control.changing(response) as connection:
        audit_log.append(connection, "restart", instance, order, tenant_id=None)
    control.redis.hset(redis_keys.RESTARTS, instance, json.dumps(order))
    return {"instance": instance, "epoch": entry.epoch, "drain_seconds": body.drain_seconds}
