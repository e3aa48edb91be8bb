"""Routes of projects."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from billing.api.answer import Listing
from billing.api.catalogue_answers import ProjectAnswer
from billing.api.control import Control
from billing.api.fields import Body, Name, NamePath, TenantQuery
from billing.api.paging import NameContains, PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import projects, tenants
from billing.catalogue.projects import Project

router = APIRouter(prefix="/admin/v1/projects", tags=["projects"], dependencies=[KNOWN_QUERY])


class NewProject(Body):
    """A part of a tenant whose usage is shown separately."""

    tenant: Name
    name: Name


class ProjectChange(Body):
    """`tenant`: the project's tenant. Fields that are not given stay."""

    tenant: Name
    name: Name | None = None
    status: Literal["active", "archived"] | None = None


@router.post("", status_code=201, response_model=ProjectAnswer)
def create(body: NewProject, control: Control, response: Response) -> dict[str, Any]:
    """Create a project of a tenant."""
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        return _shown(projects.create(connection, tenant.tenant_id, body.name), tenant.name)


@router.get("", response_model=Listing[ProjectAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    name: NameContains = None,
    archived: Annotated[bool, Query(description="Archived ones, too.")] = False,
) -> dict[str, Any]:
    """The projects of a tenant, or of all, oldest first."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        found = projects.list_page(connection, asked, tenant_id=tenant_id, name=name, archived=archived)
        names = tenants.names(connection, [project.tenant_id for project in found.rows])
        return listing(found, lambda project: _shown(project, names[project.tenant_id]))


@router.patch("/{project}", response_model=ProjectAnswer)
def change(project: NamePath, body: ProjectChange, control: Control, response: Response) -> dict[str, Any]:
    """Rename, archive, or restore a project. The keys of an archived project are refused; its usage stays."""
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        changed = projects.change(connection, tenant.tenant_id, project, name=body.name, status=body.status)
        return _shown(changed, tenant.name)


def _shown(project: Project, tenant_name: str) -> dict[str, Any]:
    return {
        "project": project.project_id,
        "name": project.name,
        "status": project.status,
        "tenant": project.tenant_id,
        "tenant_name": tenant_name,
        "created_ms": project.created_ms,
    }
