"""Routes of admin keys. Only the answer to its creation contains the key itself."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy import Connection

from billing.accounts import admin_keys
from billing.accounts.admin_keys import AdminKey, Status
from billing.accounts.roles import Role
from billing.api.answer import Answer, Listing, Ms
from billing.api.control import Control
from billing.api.fields import Body, Label, Moment, Name, TenantQuery
from billing.api.keys import Rotation
from billing.api.paging import NameContains, PageQuery
from billing.api.query import KNOWN_QUERY
from billing.catalogue import tenants
from billing.refusals import Invalid

router = APIRouter(prefix="/admin/v1/admin-keys", tags=["admin_keys"], dependencies=[KNOWN_QUERY])

KeyPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_]{1,64}$")]
RoleName = Literal["operator", "finance", "auditor", "admin", "member", "billing", "viewer"]


class NewAdminKey(Body):
    """A key of the platform (`operator`, `finance`, `auditor`), or of one tenant (`admin`, `member`,
    `billing`, `viewer`), which a caller that is confined to a tenant need not name. `name` is for people.
    Without `expires_at_ms` (ms, or ISO 8601) it lasts until it is revoked.
    """

    role: RoleName
    tenant: Name | None = None
    name: Label | None = None
    expires_at_ms: Moment | None = None


class AdminKeyAnswer(Answer):
    """A key without its secret. `tenant` null: a key of the platform. `last_used_ms`: to the minute."""

    key_id: str
    display: str
    name: str | None
    role: RoleName
    tenant: str | None
    tenant_name: str | None
    status: Status
    expires_at_ms: Ms | None
    revoked_ms: Ms | None
    last_used_ms: Ms | None
    created_ms: Ms


class AdminKeyMade(AdminKeyAnswer):
    """`key` is only shown in this answer. It is null if the answer is repeated for an `Idempotency-Key`."""

    key: str | None


class AdminKeyRotated(AdminKeyMade):
    """The new key, and the old one as it is now."""

    old: AdminKeyAnswer


class AdminKeyRotation(Rotation):
    """How long the old key still works beside the new one."""


@router.post("", status_code=201, response_model=AdminKeyMade)
def create(body: NewAdminKey, control: Control, response: Response) -> dict[str, Any]:
    """Create an admin key. `key` is only shown in this answer. Nobody gives rights that it has not got."""
    if body.expires_at_ms is not None and body.expires_at_ms <= time.time() * 1000:
        raise Invalid("A key must not expire before it is made.", param="expires_at_ms")
    response.headers["cache-control"] = "no-store"
    with control.changing(response) as connection:
        made = admin_keys.create(
            connection,
            control.caller,
            Role(body.role),
            tenant_id=control.tenant_asked(connection, body.tenant),
            name=body.name,
            expires_at_ms=body.expires_at_ms,
        )
        return {"key": made.secret, **_shown(connection, [made.key])[0]}


@router.get("", response_model=Listing[AdminKeyAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    name: NameContains = None,
    role: Annotated[RoleName | None, Query()] = None,
    status: Annotated[Status | None, Query()] = None,
) -> dict[str, Any]:
    """Admin keys, of a tenant or all, oldest first, including revoked ones."""
    with control.reading() as connection:
        found = admin_keys.list_page(
            connection,
            asked,
            tenant_id=control.tenant_asked(connection, tenant),
            name=name,
            role=None if role is None else Role(role),
            status=status,
        )
        return {"data": _shown(connection, found.rows), "next": found.next}


@router.get("/{key_id}", response_model=AdminKeyAnswer)
def show(key_id: KeyPath, control: Control) -> dict[str, Any]:
    """One admin key, and when it was last used; never the key itself."""
    with control.reading() as connection:
        return _shown(connection, [admin_keys.find(connection, key_id, tenant_id=control.tenant_id)])[0]


@router.post("/{key_id}/rotate", status_code=201, response_model=AdminKeyRotated)
def rotate(key_id: KeyPath, body: AdminKeyRotation, control: Control, response: Response) -> dict[str, Any]:
    """Make a new key with the same role; this one works for the overlap. `key` is only shown in this
    answer.
    """
    response.headers["cache-control"] = "no-store"
    with control.changing(response) as connection:
        ends_ms = int(time.time() * 1000) + body.overlap_seconds * 1000
        made = admin_keys.rotate(connection, control.caller, key_id, ends_ms=ends_ms)
        new, old = _shown(connection, [made.key, admin_keys.find(connection, key_id)])
        return {"key": made.secret, **new, "old": old}


@router.delete("/{key_id}", response_model=AdminKeyAnswer)
def revoke(key_id: KeyPath, control: Control, response: Response) -> dict[str, Any]:
    """Revoke an admin key, for good and at once."""
    with control.changing(response) as connection:
        return _shown(connection, [admin_keys.revoke(connection, control.caller, key_id)])[0]


def _shown(connection: Connection, keys: list[AdminKey]) -> list[dict[str, Any]]:
    names = tenants.names(connection, [key.tenant_id for key in keys if key.tenant_id is not None])
    return [
        {
            "key_id": key.key_id,
            "display": key.display,
            "name": key.name,
            "role": key.role.value,
            "tenant": key.tenant_id,
            "tenant_name": None if key.tenant_id is None else names[key.tenant_id],
            "status": key.status,
            "expires_at_ms": key.expires_at_ms,
            "revoked_ms": key.revoked_ms,
            "last_used_ms": key.last_used_ms,
            "created_ms": key.created_ms,
        }
        for key in keys
    ]
