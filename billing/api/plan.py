"""The route of the plan: what each pool's machines are for over coming quarters."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from billing.api.capacity_answers import PlanAnswer
from billing.api.contract_shapes import moment
from billing.api.control import Control
from billing.api.fields import Name
from billing.api.query import KNOWN_QUERY
from billing.catalogue import models, pools
from billing.contracts.commitments import read_position
from billing.contracts.position import units
from billing.contracts.store import now_ms
from billing.moments import utc
from billing.reclaims import store
from billing.reclaims.outlook import Period, outlook

router = APIRouter(prefix="/admin/v1/plan", tags=["plan"], dependencies=[KNOWN_QUERY])


@router.get("", response_model=PlanAnswer)
def show(
    control: Control,
    pool: Annotated[Name | None, Query()] = None,
    quarters: Annotated[int, Query(ge=1, le=40)] = 4,
) -> dict[str, Any]:
    """Per pool and time in which nothing changes: machines by use, units signed and free; from ramps, notices and reclaims."""
    with control.reading() as connection:
        at_ms = now_ms(connection)
        catalogue = models.list_all(connection)
        names = [pool] if pool is not None else _pools(connection, catalogue)
        shown = [_shown_pool(connection, name, _own_use(name, catalogue), at_ms, quarters) for name in names]
    return {"from": utc(at_ms), "quarters": quarters, "data": shown}


def _pools(connection: Connection, catalogue: list[models.Model]) -> list[str]:
    return sorted({model.pool for model in catalogue} | set(pools.declared(connection)))


def _own_use(pool: str, catalogue: list[models.Model]) -> str:
    """What its machines do when nobody has taken them: serve internal tenants, if its models are visible to no others."""
    visible = {str(model.visible) for model in catalogue if model.pool == pool}
    return "internal" if visible == {"internal"} else "external"


def _shown_pool(connection: Connection, pool: str, own_use: str, at_ms: int, quarters: int) -> dict[str, Any]:
    position = read_position(connection, pool, at_ms)
    taking = store.list_all(connection, pool=pool, states=store.TAKING)
    return {
        "pool": pool,
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
