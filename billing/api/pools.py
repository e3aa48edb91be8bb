"""Routes of pools: what serves in them now, what they have, and how much of it is sold."""

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, Final

import redis
from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import Connection

from billing.allocator.supply import read_calibrations
from billing.api.answer import Listing
from billing.api.capacity_answers import LivePool, PoolAnswer
from billing.api.contract_shapes import Headroom, UnitsPerSecond, part, shown_span
from billing.api.control import Control, ControlPlane
from billing.api.fields import Body, NamePath
from billing.api.paging import NameContains, PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import models, pools
from billing.contracts import store
from billing.contracts.commitments import change_pool, read_for_sale
from billing.contracts.position import shortfalls, units
from billing.fleet.registered import machines_of, read_registered
from billing.page import Order, page_of
from billing.wire.instance_entry import InstanceEntry

router = APIRouter(prefix="/admin/v1/pools", tags=["pools"], dependencies=[KNOWN_QUERY])

_BY_NAME: Final[Order[str]] = Order("pools", lambda pool: (pool,), (str,))


class PoolChange(Body):
    """Fields that are not given stay. A change that would break a signed contract is refused. Units per
    second are decimals, headroom is a fraction.
    """

    instances: int | None = Field(default=None, ge=0, le=1_000_000)
    headroom: Headroom | None = None
    set_aside: UnitsPerSecond | None = None


@router.get("", response_model=Listing[LivePool])
def list_all(control: Control, asked: PageQuery, name: NameContains = None) -> dict[str, Any]:
    """The pools by name, with what serves in them now."""
    with control.reading() as connection:
        catalogue = models.list_all(connection)
        declared = pools.declared(connection)
        measured = read_calibrations(connection)
    members: defaultdict[str, list[str]] = defaultdict(list)
    cells = {model.pool: model.cell for model in catalogue}
    for model in catalogue:
        members[model.pool].append(model.name)
    live: defaultdict[str, list[InstanceEntry]] = defaultdict(list)
    for entry in read_registered(control.redis):
        live[entry.pool].append(entry)
        cells.setdefault(entry.pool, entry.cell)

    def shown(pool: str) -> dict[str, Any]:
        instances = machines_of(declared.get(pool, 0), live[pool], measured=pool in measured)
        return _live(pool, cells[pool], members[pool], instances, live[pool])

    found = [pool for pool in cells if name is None or name.lower() in pool.lower()]
    return listing(page_of(found, _BY_NAME, asked), shown)


@router.get("/{pool:path}", response_model=PoolAnswer)
def show(pool: NamePath, control: Control) -> dict[str, Any]:
    """What a pool has, owes and could sell now, and where more is signed than there is."""
    there = _there(control, pool)
    with control.reading() as connection:
        return _shown(connection, pool, there)


@router.patch("/{pool:path}", response_model=PoolAnswer)
def change(pool: NamePath, body: PoolChange, control: Control, response: Response) -> dict[str, Any]:
    """Set how many instances it has, how much of the capacity stays free, and what the operator keeps for
    itself.
    """
    there = _there(control, pool)
    with control.changing(response) as connection:
        change_pool(
            connection,
            pool,
            now_ms=store.now_ms(connection),
            instances=body.instances,
            headroom_permille=body.headroom,
            set_aside_mu_s=body.set_aside,
        )
        return _shown(connection, pool, there)


def _there(control: ControlPlane, pool: str) -> list[InstanceEntry] | None:
    """The registered instances; None if Redis does not answer, because what a pool has and owes is in SQL."""
    try:
        return [entry for entry in read_registered(control.redis) if entry.pool == pool]
    except redis.RedisError:
        return None


def _shown(connection: Connection, pool: str, there: Collection[InstanceEntry] | None) -> dict[str, Any]:
    now_ms = store.now_ms(connection)
    position = read_for_sale(connection, pool, now_ms)
    measured = position.capacity_mu_s
    return {
        "pool": pool,
        "instances": machines_of(position.instances, there or (), measured=measured is not None),
        "declared": position.instances,
        "registered": None if there is None else len(there),
        "ready": None if there is None else sum(1 for entry in there if entry.status == "ready"),
        "taken": sum(taken.instances for taken in position.taken if taken.from_ms <= now_ms < taken.until_ms),
        "headroom": part(position.headroom_permille),
        "set_aside": units(position.set_aside_mu_s),
        "units_per_instance": None if measured is None else units(measured),
        "capacity": units(position.capacity().at(now_ms)),
        "reserved": units(position.reserved().at(now_ms)),
        "free": units(position.free().at(now_ms)),
        "contracts": len(position.holdings),
        "shortfalls": [shown_span(span) for span in shortfalls(position, now_ms)],
    }


def _live(
    pool: str, cell: str, names: list[str], instances: int, entries: list[InstanceEntry]
) -> dict[str, Any]:
    statuses = Counter(entry.status.value for entry in entries)
    return {
        "pool": pool,
        "cell": cell,
        "models": names,
        "instances": instances,
        "registered": len(entries),
        "ready": statuses["ready"],
        "statuses": dict(statuses),
        "running": sum(entry.load.running for entry in entries),
        "waiting": sum(entry.load.waiting for entry in entries),
    }
