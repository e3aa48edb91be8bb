"""Routes of projects."""

from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from billing import projects, tenants
from billing.api.control import Control
from billing.api.fields import Body, Name, TenantQuery
from billing.projects import Project

router = APIRouter(prefix="/admin/v1/projects", tags=["projects"])


class NewProject(Body):
    """A heading under which a tenant's usage is kept apart."""

    tenant: Name
    name: Name


@router.post("", status_code=201)
def create(body: NewProject, control: Control, response: Response) -> dict[str, Any]:
    """Create a project of a tenant."""
    with control.changing(response) as connection:
        tenant = tenants.find(connection, body.tenant)
        return _shown(projects.create(connection, tenant.tenant_id, body.name), tenant.name)


@router.get("")
def list_all(control: Control, tenant: TenantQuery = None) -> dict[str, Any]:
    """The projects of a tenant, or of all."""
    with control.reading() as connection:
        found = projects.list_all(connection, tenant_id_of(connection, tenant))
        names = tenants.names(connection, [project.tenant_id for project in found])
        return {"data": [_shown(project, names[project.tenant_id]) for project in found]}


def tenant_id_of(connection: Connection, tenant: str | None) -> str | None:
    """The id of the tenant that a query names, if it names one. Raises NotFound."""
    return None if tenant is None else tenants.find(connection, tenant).tenant_id


def _shown(project: Project, tenant_name: str) -> dict[str, Any]:
    return {
        "project": project.project_id,
        "name": project.name,
        "tenant": project.tenant_id,
        "tenant_name": tenant_name,
        "created_ms": project.created_ms,
    }
