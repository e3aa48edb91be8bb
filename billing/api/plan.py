"""The route of the plan: the use of each pool's machines over coming quarters."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Query
from sqlalchemy import Connection

from billing.api.capacity_answers import PlanAnswer
from billing.api.contract_shapes import moment
from billing.api.control import Control, ControlPlane
from billing.api.fields import Name
from billing.api.query import KNOWN_QUERY
from billing.catalogue import pools
from billing.contracts.commitments import read_position
from billing.contracts.position import Position, units
from billing.contracts.store import now_ms
from billing.economics.reading import Catalogue, read_catalogue, use_now
from billing.fleet.registered import machines_of, read_registered
from billing.moments import utc
from billing.reclaims import store
from billing.reclaims.outlook import Period, outlook
from billing.wire.instance_entry import InstanceEntry

router = APIRouter(prefix="/admin/v1/plan", tags=["plan"], dependencies=[KNOWN_QUERY])


@router.get("", response_model=PlanAnswer)
def show(
    control: Control,
    pool: Annotated[Name | None, Query()] = None,
    quarters: Annotated[int, Query(ge=1, le=40)] = 4,
) -> dict[str, Any]:
    """For each pool and each time in which nothing changes: machines by use, units signed and free; from
    ramps, notices and reclaims.
    """
    there = _there(control)
    with control.reading() as connection:
        at_ms = now_ms(connection)
        catalogue = read_catalogue(connection)
        names = [pool] if pool is not None else _pools(connection, catalogue)
        positions = [_position(connection, name, at_ms, there.get(name, ())) for name in names]
        shown = [
            _shown_pool(connection, each, use_now(connection, each.pool, catalogue, at_ms), at_ms, quarters)
            for each in positions
        ]
    return {"from": utc(at_ms), "quarters": quarters, "data": shown}


def _pools(connection: Connection, catalogue: Catalogue) -> list[str]:
    return sorted({model.pool for model in catalogue.models.values()} | set(pools.declared(connection)))


def _there(control: ControlPlane) -> Mapping[str, Sequence[InstanceEntry]]:
    """The registered instances by pool; none if Redis does not answer, because the plan is in SQL."""
    found: defaultdict[str, list[InstanceEntry]] = defaultdict(list)
    with suppress(redis.RedisError):
        for entry in read_registered(control.redis):
            found[entry.pool].append(entry)
    return found


def _position(connection: Connection, pool: str, at_ms: int, there: Sequence[InstanceEntry]) -> Position:
    """The position with as many machines as `taas pool` shows."""
    position = read_position(connection, pool, at_ms)
    measured = position.capacity_mu_s is not None
    return replace(position, instances=machines_of(position.instances, there, measured=measured))


def _shown_pool(
    connection: Connection, position: Position, own_use: str, at_ms: int, quarters: int
) -> dict[str, Any]:
    taking = store.list_all(connection, pool=position.pool, states=store.TAKING)
    return {
        "pool": position.pool,
        "own_use": own_use,
        "instances": position.instances,
        "units_per_instance": None if position.capacity_mu_s is None else units(position.capacity_mu_s),
        "periods": [_shown_period(each) for each in outlook(position, taking, own_use, at_ms, quarters)],
    }


def _shown_period(period: Period) -> dict[str, Any]:
    return {
        "quarter": period.quarter,
        "from": utc(period.from_ms),
        "until": moment(period.until_ms),
        "machines": period.machines,
        "capacity": units(period.capacity_mu_s),
        "signed": units(period.signed_mu_s),
        "free": units(period.free_mu_s),
        "short": units(period.short_mu_s),
    }
