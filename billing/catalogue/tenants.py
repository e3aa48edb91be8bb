"""Tenants in SQL: who is billed, and what they may do. It knows neither HTTP nor Redis.

Each function works in the caller's transaction and notes in the outbox what must be written to Redis.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import outbox, projects
from billing.catalogue.names import TENANT_PREFIX, new_id
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, contains, read_page
from billing.refusals import Conflict, NotFound
from billing.schema.catalogue import tenant as table

Kind = Literal["external", "internal"]
# An archived tenant is refused like a suspended one, and left out of lists.
Status = Literal["active", "suspended", "archived"]

# While Redis is away, the default is to serve nobody.
REFUSE: Final[Mapping[str, Any]] = {"policy": "refuse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant. `redis_down`: its policy while Redis is away (docs/interfaces.md §3). `weight`: its share
    of what is divided fairly. `time_zone`: where its days and months begin, as in `Europe/Berlin`.
    `retain_answers_s`: how long answers to its requests with an Idempotency-Key are stored; 0: they are not.
    """

    tenant_id: str
    name: str
    kind: Kind
    status: Status
    on_demand: bool
    redis_down: dict[str, Any]
    weight: int
    time_zone: str
    retain_answers_s: int
    created_ms: int
    updated_ms: int


_BY_NAME: Final[Order[Tenant]] = Order("tenants", lambda tenant: (tenant.name,), (str,), (table.c.name,))


def create(
    connection: Connection,
    name: str,
    kind: Kind = "external",
    *,
    on_demand: bool = True,
    redis_down: Mapping[str, Any] = REFUSE,
    weight: int = 1,
    time_zone: str = "UTC",
) -> Tenant:
    """A new tenant, active, with the project `default`. Raises Conflict when the name is taken."""
    row = connection.execute(
        insert(table)
        .values(
            tenant_id=new_id(TENANT_PREFIX),
            name=name,
            kind=kind,
            on_demand=on_demand,
            redis_down=dict(redis_down),
            weight=weight,
            time_zone=time_zone,
        )
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(table)
    ).one_or_none()
    if row is None:
        raise Conflict(f"There is a tenant named {name!r} already.", param="name")
    projects.create(connection, row.tenant_id, projects.DEFAULT)
    outbox.record(connection, ChangeKind.TENANT, row.tenant_id)
    return _tenant(row)


def find(connection: Connection, tenant: str, *, param: str = "tenant", only: str | None = None) -> Tenant:
    """By id or name. Raises NotFound; with `only`, an id, for every other tenant."""
    row = connection.execute(
        select(table).where(or_(table.c.tenant_id == tenant, table.c.name == tenant))
    ).one_or_none()
    if row is None or only not in {None, row.tenant_id}:
        raise NotFound(
            f"There is no tenant {tenant!r}; `taas tenant list` shows those that are.", param=param
        )
    return _tenant(row)


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    name: str | None = None,
    status: Status | None = None,
    kind: Kind | None = None,
    archived: bool = False,
    only: str | None = None,
) -> Page[Tenant]:
    """Tenants by name, those whose name contains `name`; archived ones only if asked for. `only`: this one,
    by id.
    """
    query = select(table)
    if only is not None:
        query = query.where(table.c.tenant_id == only)
    if name is not None:
        query = query.where(contains(table.c.name, name))
    if kind is not None:
        query = query.where(table.c.kind == kind)
    if status is not None:
        query = query.where(table.c.status == status)
    elif not archived:
        query = query.where(table.c.status != "archived")
    return read_page(connection, query, _BY_NAME, _tenant, asked)


def names(connection: Connection, tenant_ids: Iterable[str]) -> dict[str, str]:
    """The names of these ids; unknown ones are left out."""
    rows = connection.execute(
        select(table.c.tenant_id, table.c.name).where(table.c.tenant_id.in_(set(tenant_ids)))
    )
    return {row.tenant_id: row.name for row in rows}


def change(
    connection: Connection,
    tenant: str,
    *,
    name: str | None = None,
    status: Status | None = None,
    on_demand: bool | None = None,
    redis_down: Mapping[str, Any] | None = None,
    weight: int | None = None,
    time_zone: str | None = None,
    retain_answers_s: int | None = None,
) -> Tenant:
    """Set what is given. Raises NotFound, and Conflict where another has that name."""
    tenant_id = find(connection, tenant).tenant_id
    if name is not None:
        # A name that another transaction takes meanwhile is refused by the table.
        other = connection.execute(select(table.c.tenant_id).where(table.c.name == name)).scalar_one_or_none()
        if other not in {None, tenant_id}:
            raise Conflict(f"There is a tenant named {name!r} already.", param="name")
    wanted = {
        "name": name, "status": status, "on_demand": on_demand,
        "redis_down": None if redis_down is None else dict(redis_down), "weight": weight,
        "time_zone": time_zone, "retain_answers_s": retain_answers_s,
    }  # fmt: skip
    given = {column: value for column, value in wanted.items() if value is not None}
    if given:
        connection.execute(update(table).where(table.c.tenant_id == tenant_id).values(given))
        outbox.record(connection, ChangeKind.TENANT, tenant_id)
    return find(connection, tenant_id)


def stop_streams(connection: Connection, tenant_id: str) -> None:
    """Have the gateways stop this tenant's open requests; in the outbox that comes after the tenant's own
    change.
    """
    outbox.record(connection, ChangeKind.STOP, f"tenant:{tenant_id}")


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(**row._mapping)
