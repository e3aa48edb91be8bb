"""Projects, keys, limits and changes in OpenAI's form, for the admin client of its SDK. Gateways pass these
routes on. They only read: `/admin/v1` is where things are changed.

A tenant's admin key sees that tenant, one of the platform all tenants or the one that it names. Pages begin
after the id of the last object shown.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from billing.accounts import admin_keys, audit_log
from billing.accounts.admin_keys import AdminKey
from billing.accounts.audit_log import Entry
from billing.api.control import Control, ControlPlane
from billing.api.fields import IdPath, TenantQuery
from billing.api.organization_answers import (
    AuditLogEntry,
    ObjectList,
    OrganizationAdminKey,
    OrganizationProject,
    ProjectKey,
    ProjectRateLimit,
)
from billing.api.organization_usage import Seconds
from billing.api.plain_lists import PlainLists
from billing.api.query import KNOWN_QUERY
from billing.catalogue import api_keys, limits, projects
from billing.catalogue.api_keys import ApiKey
from billing.catalogue.projects import Project
from billing.page import Page, PageRequest
from billing.refusals import NotFound

router = APIRouter(
    prefix="/v1/organization", tags=["organization"], dependencies=[KNOWN_QUERY], route_class=PlainLists
)

_LIMIT: Final = Query(ge=1, le=100, description="At most so many.")
Limit = Annotated[int, _LIMIT]
AfterId = Annotated[
    str | None, Query(min_length=1, max_length=128, description="The id of the last object shown.")
]


@router.get("/projects", response_model=ObjectList[OrganizationProject])
def list_projects(
    control: Control,
    limit: Limit = 20,
    after: AfterId = None,
    tenant: TenantQuery = None,
    include_archived: bool = False,
) -> dict[str, Any]:
    """Projects, oldest first."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        found = projects.list_page(
            connection, PageRequest(limit, after, by_id=True), tenant_id=tenant_id, archived=include_archived
        )
    return _listed(found, [_project(each) for each in found.rows])


@router.get("/projects/{project}", response_model=OrganizationProject)
def show_project(project: IdPath, control: Control) -> dict[str, Any]:
    """One project, by its id."""
    with control.reading() as connection:
        return _project(_found(connection, control, project))


@router.get("/projects/{project}/api_keys", response_model=ObjectList[ProjectKey])
def list_keys(project: IdPath, control: Control, limit: Limit = 20, after: AfterId = None) -> dict[str, Any]:
    """The keys of a project that were not revoked, oldest first."""
    with control.reading() as connection:
        of = _found(connection, control, project)
        found = api_keys.list_page(
            connection,
            PageRequest(limit, after, by_id=True),
            tenant_id=of.tenant_id,
            project_id=of.project_id,
            revoked=False,
        )
    return _listed(found, [_key(each) for each in found.rows])


@router.get("/projects/{project}/rate_limits", response_model=ObjectList[ProjectRateLimit])
def list_rate_limits(
    project: IdPath, control: Control, limit: Limit = 100, after: AfterId = None
) -> dict[str, Any]:
    """The limits that hold for the tenant of this project, by model."""
    with control.reading() as connection:
        of = _found(connection, control, project)
        entries = limits.table_of(connection, [of.tenant_id]).entries
    own = sorted((model, entry) for (_, key_id, model), entry in entries.items() if key_id is None)
    left = [each for each in own if after is None or f"rl-{each[0]}" > after]
    shown = [
        {
            "object": "project.rate_limit",
            "id": f"rl-{model}",
            "model": model,
            "max_requests_per_1_minute": entry["requests_per_minute"],
            "max_tokens_per_1_minute": entry["tokens_per_minute"],
            "max_requests_per_1_day": entry["requests_per_day"],
            "max_tokens_per_1_day": entry["tokens_per_day"],
        }
        for model, entry in left[:limit]
    ]
    return _listed(Page(left[:limit], "more" if len(left) > limit else None), shown)


@router.get("/admin_api_keys", response_model=ObjectList[OrganizationAdminKey])
def list_admin_keys(
    control: Control,
    limit: Limit = 20,
    after: AfterId = None,
    tenant: TenantQuery = None,
    order: Literal["asc"] = "asc",
) -> dict[str, Any]:
    """Admin keys that work, oldest first."""
    with control.reading() as connection:
        found = admin_keys.list_page(
            connection,
            PageRequest(limit, after, by_id=True),
            tenant_id=control.tenant_asked(connection, tenant),
            status="active",
        )
    return _listed(found, [_admin_key(each) for each in found.rows])


@router.get("/audit_logs", response_model=ObjectList[AuditLogEntry])
def list_audit_logs(
    control: Control,
    limit: Limit = 20,
    after: AfterId = None,
    tenant: TenantQuery = None,
    effective_at_gte: Seconds | None = None,
    effective_at_gt: Seconds | None = None,
    effective_at_lt: Seconds | None = None,
    effective_at_lte: Seconds | None = None,
) -> dict[str, Any]:
    """Changes, the newest first. `effective_at` as the SDK writes it: `effective_at[gte]`."""
    since = [effective_at_gte, None if effective_at_gt is None else effective_at_gt + 1]
    until = [effective_at_lt, None if effective_at_lte is None else effective_at_lte + 1]
    with control.reading() as connection:
        wanted = audit_log.Wanted(
            tenant_id=control.tenant_asked(connection, tenant),
            since_ms=max((each * 1000 for each in since if each is not None), default=None),
            until_ms=min((each * 1000 for each in until if each is not None), default=None),
        )
        found = audit_log.list_page(connection, PageRequest(limit, after, by_id=True), wanted)
    return _listed(found, [_change(each) for each in found.rows])


def _found(connection: Connection, control: ControlPlane, project: str) -> Project:
    """Raises NotFound, also for a project that the caller does not see."""
    found = projects.by_id(connection, project)
    if found is None or control.tenant_id not in {None, found.tenant_id}:
        raise NotFound(f"There is no project {project!r}.", param="project")
    return found


def _listed(page: Page[Any], shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
    none = {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, "has_more": page.next is not None} | none | ends


def _project(project: Project) -> dict[str, Any]:
    archived = project.status == "archived"
    return {
        "object": "organization.project",
        "id": project.project_id,
        "name": project.name,
        "created_at": project.created_ms // 1000,
        "archived_at": project.updated_ms // 1000 if archived else None,
        "status": project.status,
    }


def _key(key: ApiKey) -> dict[str, Any]:
    name = key.name or key.key_id
    account = {
        "object": "organization.project.service_account",
        "id": key.key_id,
        "name": name,
        "role": "member",
        "created_at": key.created_ms // 1000,
    }
    return {
        "object": "organization.project.api_key",
        "id": key.key_id,
        "name": name,
        "redacted_value": key.display,
        "created_at": key.created_ms // 1000,
        "last_used_at": _seconds(key.last_used_ms),
        "expires_at": _seconds(key.expires_at_ms),
        "owner": {"type": "service_account", "service_account": account},
        "owner_project_access": "active" if key.status == "active" else "inactive",
    }


def _admin_key(key: AdminKey) -> dict[str, Any]:
    of = key.tenant_id or "platform"
    return {
        "object": "organization.admin_api_key",
        "id": key.key_id,
        "name": key.name,
        "redacted_value": key.display,
        "created_at": key.created_ms // 1000,
        "last_used_at": _seconds(key.last_used_ms),
        "expires_at": _seconds(key.expires_at_ms),
        "owner": {
            "type": "service_account",
            "object": "organization.user",
            "id": of,
            "name": of,
            "role": key.role.value,
            "created_at": key.created_ms // 1000,
        },
    }


# The table of a row → OpenAI's word for it.
_NOUNS: Final = {"quota_limit": "rate_limit", "tenant": "organization"}


def _change(entry: Entry) -> dict[str, Any]:
    verb = "created" if entry.before is None else "deleted" if entry.after is None else "updated"
    if (entry.after or {}).get("status") == "archived" and verb == "updated":
        verb = "archived"
    elif (entry.after or {}).get("revoked_ms") is not None and verb == "updated":
        verb = "deleted"
    kind = f"{_NOUNS.get(entry.kind, entry.kind)}.{verb}"
    return {
        "id": str(entry.entry),
        "type": kind,
        "effective_at": entry.at_ms // 1000,
        "actor": {"type": "api_key", "api_key": {"id": entry.actor, "type": "service_account"}},
        kind: {"id": entry.subject, "changes_requested": entry.after},
    }


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
