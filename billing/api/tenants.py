"""Routes of tenants."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from billing import tenants
from billing.api.control import Control
from billing.api.fields import COUNT_MAX, UNITS_MAX, Body, NamePath, TenantName
from billing.refusals import Invalid
from billing.tenants import Tenant

router = APIRouter(prefix="/admin/v1/tenants", tags=["tenants"])


class Refuse(Body):
    """While Redis is gone, nothing is served."""

    policy: Literal["refuse"]


class LocalLease(Body):
    """While Redis is gone, this many requests and work units, over all gateways together."""

    policy: Literal["local_lease"]
    requests: Annotated[int, Field(ge=1, le=COUNT_MAX)]
    units: Annotated[int, Field(ge=1, le=UNITS_MAX)]


Weight = Annotated[int, Field(ge=1, le=1000)]
RedisDown = Annotated[Refuse | LocalLease, Field(discriminator="policy")]


class NewTenant(Body):
    """Who is to be billed. Without a contract, `on_demand` is the right to be served at all."""

    name: TenantName
    kind: Literal["external", "internal"] = "external"
    on_demand: bool = True
    redis_down: RedisDown = Refuse(policy="refuse")
    weight: Weight = 1


class TenantChange(Body):
    """What is not given stays. `stop_streams`, with `suspended`: end what is open, too."""

    status: Literal["active", "suspended"] | None = None
    on_demand: bool | None = None
    redis_down: RedisDown | None = None
    weight: Weight | None = None
    stop_streams: bool = False


@router.post("", status_code=201)
def create(body: NewTenant, control: Control, response: Response) -> dict[str, Any]:
    """Create a tenant, with the project `default`."""
    with control.changing(response) as connection:
        redis_down = body.redis_down.model_dump()
        made = tenants.create(
            connection, body.name, body.kind, on_demand=body.on_demand, redis_down=redis_down, weight=body.weight
        )
    return shown(made)


@router.get("")
def list_all(control: Control) -> dict[str, Any]:
    """Every tenant, by name."""
    with control.reading() as connection:
        return {"data": [shown(tenant) for tenant in tenants.list_all(connection)]}


@router.get("/{tenant:path}")
def show(tenant: NamePath, control: Control) -> dict[str, Any]:
    """One tenant, by id or name."""
    with control.reading() as connection:
        return shown(tenants.find(connection, tenant))


@router.patch("/{tenant:path}")
def change(tenant: NamePath, body: TenantChange, control: Control, response: Response) -> dict[str, Any]:
    """Suspend, resume, or change what it may do. A suspended tenant is refused within a second."""
    if body.stop_streams and body.status != "suspended":
        raise Invalid("stop_streams goes with status `suspended`.", param="stop_streams")
    with control.changing(response) as connection:
        changed = tenants.change(
            connection,
            tenant,
            status=body.status,
            on_demand=body.on_demand,
            redis_down=None if body.redis_down is None else body.redis_down.model_dump(),
            weight=body.weight,
        )
        if body.stop_streams:
            tenants.stop_streams(connection, changed.tenant_id)
    return shown(changed)


def shown(tenant: Tenant) -> dict[str, Any]:
    """As JSON; `tenant` is the id, as in usage events."""
    return {
        "tenant": tenant.tenant_id,
        "name": tenant.name,
        "kind": tenant.kind,
        "status": tenant.status,
        "on_demand": tenant.on_demand,
        "redis_down": tenant.redis_down,
        "weight": tenant.weight,
        "created_ms": tenant.created_ms,
        "updated_ms": tenant.updated_ms,
    }
