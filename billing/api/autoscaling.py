"""Routes of autoscaling: how many instances of a pool should run."""

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from billing.api.answer import Listing
from billing.api.capacity_answers import AutoscalingAnswer
from billing.api.control import Control
from billing.api.fields import Body, NamePath
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.autoscaling import store
from billing.autoscaling.decide import Bounds
from billing.autoscaling.store import Scaled
from billing.page import Order, page_of

router = APIRouter(prefix="/admin/v1/autoscaling", tags=["autoscaling"], dependencies=[KNOWN_QUERY])

Count = Annotated[int, Field(ge=0, le=1_000_000)]
_BY_POOL: Order[Scaled] = Order("autoscaling", lambda each: (each.pool,), (str,))


class AutoscalingBody(Body):
    """At least `min` and at most `max` instances. With `min` 0 the pool may have none while nobody asks for
    its models; the first requests then wait for one.
    """

    min: Count
    max: Annotated[int, Field(ge=1, le=1_000_000)]


@router.get("", response_model=Listing[AutoscalingAnswer])
def list_all(control: Control, asked: PageQuery) -> dict[str, Any]:
    """The pools that are scaled, by name."""
    with control.reading() as connection:
        return listing(page_of(store.list_all(connection), _BY_POOL, asked), _shown)


@router.put("/{pool:path}", response_model=AutoscalingAnswer)
def put(pool: NamePath, body: AutoscalingBody, control: Control, response: Response) -> dict[str, Any]:
    """Scale a pool within these bounds. Never below what its contracts need, whatever `max` says."""
    with control.changing(response) as connection:
        return _shown(store.put(connection, pool, Bounds(body.min, body.max)))


@router.get("/{pool:path}", response_model=AutoscalingAnswer)
def show(pool: NamePath, control: Control) -> dict[str, Any]:
    """How many instances a pool should have now, and why."""
    with control.reading() as connection:
        return _shown(store.find(connection, pool))


@router.delete("/{pool:path}", response_model=AutoscalingAnswer)
def remove(pool: NamePath, control: Control, response: Response) -> dict[str, Any]:
    """Scale a pool no more. The answer shows it as it was."""
    with control.changing(response) as connection:
        return _shown(store.remove(connection, pool))


def _shown(scaled: Scaled) -> dict[str, Any]:
    decision = scaled.decision
    return {
        "pool": scaled.pool,
        "min": scaled.bounds.least,
        "max": scaled.bounds.most,
        "desired": None if decision is None else decision.instances,
        "why": None if decision is None else decision.why.value,
        "decided_ms": scaled.decided_ms,
    }
