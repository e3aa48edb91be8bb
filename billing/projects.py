"""Projects in SQL: the headings under which a tenant's usage is kept apart. A key belongs to one of them.

Knows neither HTTP nor Redis: gateways learn a project from the key.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.postgresql import insert

from billing.names import PROJECT_PREFIX, new_id
from billing.refusals import Conflict, NotFound
from billing.schema.catalogue import project as table

# Every tenant has it from the start, so that nobody has to think of projects.
DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Project:
    """One project of one tenant."""

    project_id: str
    tenant_id: str
    name: str
    created_ms: int
    updated_ms: int


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
        select(table).where(table.c.tenant_id == tenant_id, (table.c.project_id == project) | (table.c.name == project))
    ).first()
    if row is None:
        raise NotFound(f"This tenant has no project {project!r}.", param="project")
    return _project(row)


def list_all(connection: Connection, tenant_id: str | None = None) -> list[Project]:
    """Of one tenant or of all, oldest first."""
    query = select(table).order_by(table.c.created_ms, table.c.project_id)
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    return [_project(row) for row in connection.execute(query)]


def names(connection: Connection) -> dict[str, str]:
    """Every project's name by its id."""
    return {row.project_id: row.name for row in connection.execute(select(table.c.project_id, table.c.name))}


def _project(row: Row[Any]) -> Project:
    return Project(**row._mapping)
