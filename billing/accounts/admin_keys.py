"""Admin keys in SQL: created once, shown once, stored as a hash. It knows no HTTP.

A key is `sk-admin-` and 256 random bits; nothing here can recover it. Revoked keys stay as rows, because the
audit log names them.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Row, Select, case, func, insert, or_, select, update

from billing.accounts.roles import MAY_GIVE, OF_TENANT, Caller, Role
from billing.catalogue.names import new_id
from billing.page import Order, Page, PageRequest, contains, read_page
from billing.refusals import Conflict, Forbidden, Invalid, NotFound
from billing.schema.accounts import admin_key as table
from billing.schema.catalogue import tenant
from billing.schema.clock import NOW_MS
from billing.wire.secret_forms import ADMIN_KEY_FORM, ADMIN_KEY_PREFIX

KEY_PREFIX: Final = "adm_"
SECRET_PREFIX: Final = ADMIN_KEY_PREFIX
SECRET_FORM: Final = ADMIN_KEY_FORM
_SECRET_BYTES: Final = 32
# A use is noted if the last one noted is so long ago: not each call writes.
_NOTED_EVERY_MS: Final = 60_000

# A revoked key stays revoked, whatever its expiry.
Status = Literal["active", "expired", "revoked"]
_STATUS: Final[ColumnElement[str]] = case(
    (table.c.revoked_ms.is_not(None), "revoked"), (table.c.expires_at_ms <= NOW_MS, "expired"), else_="active"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminKey:
    """A key without its secret. `display`: its beginning and its last four characters. `tenant_id`: the
    tenant to which it is confined, None for a role of the platform. `last_used_ms`: to the minute.
    """

    key_id: str
    hash: str = field(repr=False)
    display: str
    name: str | None
    role: Role
    tenant_id: str | None
    expires_at_ms: int | None
    revoked_ms: int | None
    last_used_ms: int | None
    created_ms: int
    status: Status


@dataclass(frozen=True, slots=True)
class NewAdminKey:
    """A key at its creation, the only moment at which `secret` is known."""

    key: AdminKey
    secret: str = field(repr=False)


_OLDEST_FIRST: Final[Order[AdminKey]] = Order(
    "admin_keys", lambda key: (key.created_ms, key.key_id), (int, str), (table.c.created_ms, table.c.key_id)
)


def create(
    connection: Connection,
    by: Caller,
    role: Role,
    *,
    tenant_id: str | None = None,
    name: str | None = None,
    expires_at_ms: int | None = None,
) -> NewAdminKey:
    """A new key. Raises Invalid where role and tenant do not go together; Forbidden where this caller must
    not give the role.
    """
    _require_given_by(by, role)
    if (role in OF_TENANT) != (tenant_id is not None):
        these = "a role within a tenant: name the tenant" if tenant_id is None else "no role within a tenant"
        raise Invalid(f"`{role}` is {these}.", param="tenant" if tenant_id is None else "role")
    secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key_id = new_id(KEY_PREFIX)
    connection.execute(
        insert(table).values(
            key_id=key_id,
            hash=hash_of(secret),
            display=f"{SECRET_PREFIX}…{secret[-4:]}",
            name=name,
            role=role.value,
            tenant_id=tenant_id,
            expires_at_ms=expires_at_ms,
        )
    )
    return NewAdminKey(find(connection, key_id), secret)


def find(connection: Connection, key_id: str, *, tenant_id: str | None = None) -> AdminKey:
    """By id, revoked or not; with a tenant, only one of that tenant. Raises NotFound."""
    query = _query(tenant_id).where(table.c.key_id == key_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(
            f"There is no admin key {key_id!r}; `taas admin-key list` shows those that are.", param="key_id"
        )
    return _key(row)


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    tenant_id: str | None = None,
    name: str | None = None,
    role: Role | None = None,
    status: Status | None = None,
) -> Page[AdminKey]:
    """Keys of one tenant or all, oldest first, including revoked ones; those that match all that is given."""
    query = _query(tenant_id)
    if name is not None:
        query = query.where(contains(table.c.name, name))
    if role is not None:
        query = query.where(table.c.role == role.value)
    if status is not None:
        query = query.where(_STATUS.in_([status]))
    return read_page(connection, query, _OLDEST_FIRST, _key, asked)


def revoke(connection: Connection, by: Caller, key_id: str) -> AdminKey:
    """Revoke the key for good. Revoking again changes nothing. Raises NotFound, Forbidden."""
    _require_given_by(by, find(connection, key_id, tenant_id=by.tenant_id).role)
    revoked_ms = func.coalesce(table.c.revoked_ms, NOW_MS)
    connection.execute(update(table).where(table.c.key_id == key_id).values(revoked_ms=revoked_ms))
    return find(connection, key_id)


def rotate(connection: Connection, by: Caller, key_id: str, *, ends_ms: int) -> NewAdminKey:
    """A new key with the same role; this one ends at the given moment, or earlier if it expires. Raises
    NotFound, Forbidden; Conflict for a key that is revoked or has expired.
    """
    old = find(connection, key_id, tenant_id=by.tenant_id)
    if old.status != "active":
        raise Conflict(f"Admin key {key_id} is {old.status}.", param="key_id", code=f"key_{old.status}")
    made = create(
        connection, by, old.role, tenant_id=old.tenant_id, name=old.name, expires_at_ms=old.expires_at_ms
    )
    until_ms = ends_ms if old.expires_at_ms is None else min(ends_ms, old.expires_at_ms)
    connection.execute(update(table).where(table.c.key_id == key_id).values(expires_at_ms=until_ms))
    return made


def caller_with(connection: Connection, secret: str) -> Caller | None:
    """Who presents this key; None if it is not known, is revoked, has expired, or its tenant is archived.
    Its use is noted; the caller commits.
    """
    digest = hash_of(secret)
    archived = select(tenant.c.tenant_id).where(tenant.c.status == "archived")
    usable = or_(table.c.tenant_id.is_(None), table.c.tenant_id.not_in(archived))
    due = (func.coalesce(table.c.last_used_ms, 0) < NOW_MS - _NOTED_EVERY_MS).label("due")
    query = select(table.c.key_id, table.c.hash, table.c.role, table.c.tenant_id, due)
    row = connection.execute(
        query.where(table.c.hash == digest, _STATUS.in_(["active"]), usable)
    ).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, digest):
        return None
    if row.due:
        connection.execute(update(table).where(table.c.key_id == row.key_id).values(last_used_ms=NOW_MS))
    return Caller(row.key_id, Role(row.role), row.tenant_id)


def _require_given_by(by: Caller, role: Role) -> None:
    if role not in MAY_GIVE.get(by.role, frozenset()):
        raise Forbidden(f"The role `{by.role}` gives and takes no keys of role `{role}`.", param="role")


def _query(tenant_id: str | None) -> Select[Any]:
    query = select(table, _STATUS.label("status"))
    return query if tenant_id is None else query.where(table.c.tenant_id == tenant_id)


def hash_of(secret: str) -> str:
    """The SHA-256 in hex by which a key is looked up."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> AdminKey:
    return AdminKey(**{**row._mapping, "role": Role(row.role)})
