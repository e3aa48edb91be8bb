"""Routes of API keys. Only the answer to its creation contains the key itself."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field
from sqlalchemy import Connection

from billing.api.answer import Listing
from billing.api.catalogue_answers import KeyAnswer, KeyMade, KeyRotated
from billing.api.control import Control
from billing.api.fields import Body, Label, ModelName, Moment, Name, TenantQuery
from billing.api.paging import NameContains, PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import api_keys, projects, tenants
from billing.catalogue.api_keys import ApiKey, KeyChange, Status
from billing.refusals import Invalid

KeyPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_]{1,64}$")]
AllowedModels = Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=1000, strict=False)]

router = APIRouter(prefix="/admin/v1/keys", tags=["keys"], dependencies=[KNOWN_QUERY])


class NewKey(Body):
    """A key of a tenant. `name` is for people. Without `expires_at_ms` (ms, or ISO 8601) it lasts until it is
    revoked. `models`: the models that it may ask for; it cannot see any other. Without `models` it may use
    all of its tenant's.
    """

    tenant: Name
    project: Name = projects.DEFAULT
    name: Label | None = None
    expires_at_ms: Moment | None = None
    models: AllowedModels | None = None


class KeyChangeBody(Body):
    """Fields that are not given stay. Null removes the expiry, or the list of models."""

    name: Label | None = None
    expires_at_ms: Moment | None = None
    models: AllowedModels | None = None

    def change(self) -> KeyChange:
        """With what was said to be null."""
        return KeyChange(
            self.name,
            self.expires_at_ms,
            self.expires_at_ms is None and "expires_at_ms" in self.model_fields_set,
            self.models,
            self.models is None and "models" in self.model_fields_set,
        )


class Rotation(Body):
    """How long the old key still works beside the new one."""

    overlap_seconds: Annotated[int, Field(ge=0, le=366 * 86_400)] = 0


@router.post("", status_code=201, response_model=KeyMade)
def create(body: NewKey, control: Control, response: Response) -> dict[str, Any]:
    """Create a key. `key` is only shown in this answer."""
    if body.expires_at_ms is not None and body.expires_at_ms <= time.time() * 1000:
        raise Invalid("A key must not expire before it is made.", param="expires_at_ms")
    response.headers["cache-control"] = "no-store"
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        made = api_keys.create(
            connection, tenant.tenant_id, project=body.project, name=body.name,
            expires_at_ms=body.expires_at_ms, allowed_models=body.models,
            by_tenant=control.tenant_id is not None,
        )  # fmt: skip
        project = projects.find(connection, tenant.tenant_id, body.project)
    return {"key": made.secret, **_shown(made.key, tenant.name, project.name)}


@router.get("", response_model=Listing[KeyAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    name: NameContains = None,
    status: Annotated[Status | None, Query()] = None,
    project: Annotated[Name | None, Query(description="A project's id; with `tenant`, or its name.")] = None,
) -> dict[str, Any]:
    """The keys of a tenant, or of all, oldest first, including revoked ones."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        project_id = project
        if project is not None and tenant_id is not None:
            project_id = projects.find(connection, tenant_id, project).project_id
        found = api_keys.list_page(
            connection, asked, tenant_id=tenant_id, name=name, status=status, project_id=project_id
        )
        tenant_names = tenants.names(connection, [key.tenant_id for key in found.rows])
        project_names = projects.names(connection, [key.project_id for key in found.rows])
        return listing(
            found, lambda key: _shown(key, tenant_names[key.tenant_id], project_names[key.project_id])
        )


@router.get("/{key_id}", response_model=KeyAnswer)
def show(key_id: KeyPath, control: Control) -> dict[str, Any]:
    """One key, and when it was last used; never the key itself."""
    with control.reading() as connection:
        return _named(connection, api_keys.find(connection, key_id, tenant_id=control.tenant_id))


@router.patch("/{key_id}", response_model=KeyAnswer)
def change(key_id: KeyPath, body: KeyChangeBody, control: Control, response: Response) -> dict[str, Any]:
    """Change a key's name, expiry or models. Every gateway applies it within a second."""
    with control.changing(response) as connection:
        api_keys.find(connection, key_id, tenant_id=control.tenant_id)
        changed = api_keys.change(connection, key_id, body.change(), by_tenant=control.tenant_id is not None)
        return _named(connection, changed)


@router.post("/{key_id}/rotate", status_code=201, response_model=KeyRotated)
def rotate(key_id: KeyPath, body: Rotation, control: Control, response: Response) -> dict[str, Any]:
    """Make a new key with the same rights and limits; this one works for the overlap. `key` is only shown in
    this answer.
    """
    response.headers["cache-control"] = "no-store"
    with control.changing(response) as connection:
        api_keys.find(connection, key_id, tenant_id=control.tenant_id)
        ends_ms = int(time.time() * 1000) + body.overlap_seconds * 1000
        made = api_keys.rotate(connection, key_id, ends_ms=ends_ms)
        return {
            "key": made.secret,
            **_named(connection, made.key),
            "old": _named(connection, api_keys.find(connection, key_id)),
        }


@router.delete("/{key_id}", response_model=KeyAnswer)
def revoke(key_id: KeyPath, control: Control, response: Response) -> dict[str, Any]:
    """Revoke a key, for good; every gateway refuses it within a second."""
    with control.changing(response) as connection:
        api_keys.find(connection, key_id, tenant_id=control.tenant_id)
        return _named(connection, api_keys.revoke(connection, key_id))


def _named(connection: Connection, key: ApiKey) -> dict[str, Any]:
    tenant = tenants.find(connection, key.tenant_id)
    project = projects.find(connection, key.tenant_id, key.project_id)
    return _shown(key, tenant.name, project.name)


def _shown(key: ApiKey, tenant_name: str, project_name: str) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "display": key.display,
        "name": key.name,
        "tenant": key.tenant_id,
        "tenant_name": tenant_name,
        "project": key.project_id,
        "project_name": project_name,
        "status": key.status,
        "expires_at_ms": key.expires_at_ms,
        "revoked_ms": key.revoked_ms,
        "models": key.models,
        "last_used_ms": key.last_used_ms,
        "created_ms": key.created_ms,
    }
