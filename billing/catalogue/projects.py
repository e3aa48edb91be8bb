"""Projects in SQL: parts of a tenant whose usage is shown separately. A key belongs to one of them.

It knows neither HTTP nor Redis: gateways learn a project from the key.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import outbox
from billing.catalogue.names import PROJECT_PREFIX, new_id
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, contains, read_page
from billing.refusals import Conflict, NotFound
from billing.schema.any_of import any_of
from billing.schema.catalogue import api_key
from billing.schema.catalogue import project as table

# The keys of an archived project are refused, and it is left out of lists.
Status = Literal["active", "archived"]
# Every tenant has this one from the start, so that projects are optional.
DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One project of one tenant."""

    project_id: str
    tenant_id: str
    name: str
    status: Status
    created_ms: int
    updated_ms: int


_OLDEST_FIRST: Final[Order[Project]] = Order(
    "projects",
    lambda project: (project.created_ms, project.project_id),
    (int, str),
    (table.c.created_ms, table.c.project_id),
)


def create(connection: Connection, tenant_id: str, name: str) -> Project:
    """A new project. Raises Conflict when the tenant has one of this name."""
    row = connection.execute(
        insert(table)
        .values(project_id=new_id(PROJECT_PREFIX), tenant_id=tenant_id, name=name)
        .on_conflict_do_nothing(index_elements=["tenant_id", "name"])
        .returning(table)
    ).one_or_none()
    if row is None:
        raise Conflict(f"This tenant has a project named {name!r} already.", param="name")
    return _project(row)


def find(connection: Connection, tenant_id: str, project: str) -> Project:
    """A project of this tenant, by id or name. Raises NotFound, also for another tenant's."""
    row = connection.execute(
        select(table).where(
            table.c.tenant_id == tenant_id, (table.c.project_id == project) | (table.c.name == project)
        )
    ).first()
    if row is None:
        raise NotFound(f"This tenant has no project {project!r}.", param="project")
    return _project(row)


def by_id(connection: Connection, project_id: str) -> Project | None:
    """A project of any tenant."""
    row = connection.execute(select(table).where(table.c.project_id == project_id)).one_or_none()
    return None if row is None else _project(row)


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    tenant_id: str | None = None,
    name: str | None = None,
    archived: bool = False,
) -> Page[Project]:
    """Of one tenant or of all, oldest first, those whose name contains `name`; archived ones only if asked
    for.
    """
    query = select(table)
    if name is not None:
        query = query.where(contains(table.c.name, name))
    if not archived:
        query = query.where(table.c.status != "archived")
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    return read_page(connection, query, _OLDEST_FIRST, _project, asked)


def change(
    connection: Connection,
    tenant_id: str,
    project: str,
    *,
    name: str | None = None,
    status: Status | None = None,
) -> Project:
    """Set what is given. Raises NotFound, and Conflict where the tenant has another project of that name."""
    found = find(connection, tenant_id, project)
    wanted = {column: value for column, value in (("name", name), ("status", status)) if value is not None}
    if name is not None:
        of_tenant = (table.c.tenant_id == tenant_id) & (table.c.name == name)
        other = connection.execute(select(table.c.project_id).where(of_tenant)).scalar_one_or_none()
        if other not in {None, found.project_id}:
            raise Conflict(f"This tenant has a project named {name!r} already.", param="name")
    if wanted:
        connection.execute(update(table).where(table.c.project_id == found.project_id).values(wanted))
    if status is not None:
        # Gateways learn of a project by its keys.
        for key_id in connection.execute(
            select(api_key.c.key_id).where(api_key.c.project_id == found.project_id)
        ).scalars():
            outbox.record(connection, ChangeKind.KEY, key_id)
    return find(connection, tenant_id, found.project_id)


def names(connection: Connection, project_ids: Iterable[str]) -> dict[str, str]:
    """The names of these ids; unknown ones are left out."""
    these = any_of(set(project_ids))
    rows = connection.execute(select(table.c.project_id, table.c.name).where(table.c.project_id == these))
    return {row.project_id: row.name for row in rows}


def _project(row: Row[Any]) -> Project:
    return Project(**row._mapping)
