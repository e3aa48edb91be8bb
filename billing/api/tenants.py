"""Routes of tenants."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlalchemy import Connection

from billing.api.answer import Listing
from billing.api.catalogue_answers import TenantAnswer
from billing.api.control import Control
from billing.api.fields import Body, NamePath, TenantName, TimeZone
from billing.api.paging import NameContains, PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.tenant_shapes import RedisDown, Refuse, without_default
from billing.catalogue import budgets, tenants
from billing.catalogue.tenants import Kind, Status, Tenant
from billing.contracts import store
from billing.ledger.budget_spent import recount
from billing.refusals import Conflict, Invalid

router = APIRouter(prefix="/admin/v1/tenants", tags=["tenants"], dependencies=[KNOWN_QUERY])


Weight = Annotated[int, Field(ge=1, le=1000)]
# As long as an Idempotency-Key is bound to its request.
RetainAnswers = Annotated[int, Field(ge=0, le=86_400)]


class NewTenant(Body):
    """A new tenant. `on_demand`: whether it may be served without a contract. `redis_down`: the default is
    `refuse`.
    """

    name: TenantName
    kind: Kind = "external"
    on_demand: bool = True
    # Generators of clients do not understand a default that is an object.
    redis_down: RedisDown = Field(Refuse(policy="refuse"), json_schema_extra=without_default)
    weight: Weight = 1
    time_zone: TimeZone = "UTC"


class TenantChange(Body):
    """Fields that are not given stay. An archived tenant is refused like a suspended one and is not listed;
    its usage stays. `stop_streams`, with `suspended` or `archived`: also stop its open requests.
    `retain_answers_s`: how long answers to its requests with an `Idempotency-Key` are stored, to be given
    again; 0: they are not.
    """

    name: TenantName | None = None
    status: Status | None = None
    on_demand: bool | None = None
    redis_down: RedisDown | None = None
    weight: Weight | None = None
    time_zone: TimeZone | None = None
    retain_answers_s: RetainAnswers | None = None
    stop_streams: bool = False


@router.post("", status_code=201, response_model=TenantAnswer)
def create(body: NewTenant, control: Control, response: Response) -> dict[str, Any]:
    """Create a tenant, with the project `default`."""
    with control.changing(response) as connection:
        redis_down = body.redis_down.model_dump()
        made = tenants.create(
            connection,
            body.name,
            body.kind,
            on_demand=body.on_demand,
            redis_down=redis_down,
            weight=body.weight,
            time_zone=body.time_zone,
        )
    return shown(made)


@router.get("", response_model=Listing[TenantAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    name: NameContains = None,
    status: Annotated[Status | None, Query()] = None,
    kind: Annotated[Kind | None, Query()] = None,
    archived: Annotated[bool, Query(description="Archived ones, too.")] = False,
) -> dict[str, Any]:
    """Tenants by name; archived ones with `archived`, or with that status."""
    with control.reading() as connection:
        return listing(
            tenants.list_page(
                connection, asked, name=name, status=status, kind=kind, archived=archived,
                only=control.tenant_id,
            ),
            shown,
        )  # fmt: skip


@router.get("/{tenant:path}", response_model=TenantAnswer)
def show(tenant: NamePath, control: Control) -> dict[str, Any]:
    """One tenant, by id or name."""
    with control.reading() as connection:
        return shown(control.tenant_named(connection, tenant))


@router.patch("/{tenant:path}", response_model=TenantAnswer)
def change(tenant: NamePath, body: TenantChange, control: Control, response: Response) -> dict[str, Any]:
    """Suspend, resume, archive, rename, or change what it may do. A suspended tenant is refused within a
    second.
    """
    if body.stop_streams and body.status not in {"suspended", "archived"}:
        raise Invalid("stop_streams goes with status `suspended` or `archived`.", param="stop_streams")
    with control.changing(response) as connection:
        if body.status == "archived":
            _refuse_under_contract(connection, tenant)
        changed = tenants.change(
            connection,
            tenant,
            name=body.name,
            status=body.status,
            on_demand=body.on_demand,
            redis_down=None if body.redis_down is None else body.redis_down.model_dump(),
            weight=body.weight,
            time_zone=body.time_zone,
            retain_answers_s=body.retain_answers_s,
        )
        if body.time_zone is not None:
            moved = budgets.move_to_zone(connection, changed.tenant_id, store.now_ms(connection))
            recount(connection, moved)
        if body.stop_streams:
            tenants.stop_streams(connection, changed.tenant_id)
    return shown(changed)


def _refuse_under_contract(connection: Connection, tenant: str) -> None:
    found = tenants.find(connection, tenant)
    now_ms = store.now_ms(connection)
    stand = store.list_all(connection, tenant_id=found.tenant_id, states=store.BINDING, ends_after_ms=now_ms)
    if stand:
        named = ", ".join(contract.contract_id for contract in stand)
        message = (
            f"{found.name} has contracts that stand: {named}. They end by notice; archive it when "
            "they have ended."
        )
        raise Conflict(message, param="status", code="under_contract")


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
        "time_zone": tenant.time_zone,
        "retain_answers_s": tenant.retain_answers_s,
        "created_ms": tenant.created_ms,
        "updated_ms": tenant.updated_ms,
    }
