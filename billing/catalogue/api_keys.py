"""API keys in SQL: created once, shown once, stored as a hash. It knows neither HTTP nor Redis.

A key is `sk-` and 256 random bits; nothing here can recover it. Revoked keys stay as rows, because usage
events name them.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    case,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from billing.catalogue import outbox, projects
from billing.catalogue.names import KEY_PREFIX, new_id
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, contains, read_page
from billing.refusals import Conflict, NotFound
from billing.schema.catalogue import api_key as table
from billing.schema.catalogue import api_key_use, model, model_audience, quota_limit, tenant
from billing.schema.clock import NOW_MS
from billing.wire.secret_forms import API_KEY_PREFIX

SECRET_PREFIX: Final = API_KEY_PREFIX
# 32 bytes are 43 characters of URL-safe base 64.
_SECRET_BYTES: Final = 32
SECRET_FORM: Final = SECRET_PREFIX + r"[A-Za-z0-9_-]{43}"
# A revoked key stays revoked, whatever its expiry.
Status = Literal["active", "expired", "revoked"]
_STATUS: Final[ColumnElement[str]] = case(
    (table.c.revoked_ms.is_not(None), "revoked"), (table.c.expires_at_ms <= NOW_MS, "expired"), else_="active"
)
_QUERY: Final = select(table, api_key_use.c.last_used_ms, _STATUS.label("status")).outerjoin(
    api_key_use, api_key_use.c.key_id == table.c.key_id
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secret. `display`: its beginning and its last four characters. `models`: the models
    that it may ask for, None for all of its tenant's. `first_key_id`: of which it came by rotation, the first
    of them. `last_used_ms`: the end of its last recorded request.
    """

    key_id: str
    hash: str = field(repr=False)
    display: str
    name: str | None
    tenant_id: str
    project_id: str
    expires_at_ms: int | None
    revoked_ms: int | None
    models: tuple[str, ...] | None
    created_ms: int
    updated_ms: int
    first_key_id: str | None = None
    last_used_ms: int | None = None
    status: Status = "active"


@dataclass(frozen=True, slots=True)
class KeyChange:
    """The fields to set; None leaves a field. `for_good`: remove the expiry. `any_model`: allow all of its
    tenant's models.
    """

    name: str | None = None
    expires_at_ms: int | None = None
    for_good: bool = False
    models: Sequence[str] | None = None
    any_model: bool = False


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key at its creation, the only moment at which `secret` is known."""

    key: ApiKey
    secret: str = field(repr=False)


_OLDEST_FIRST: Final[Order[ApiKey]] = Order(
    "keys", lambda key: (key.created_ms, key.key_id), (int, str), (table.c.created_ms, table.c.key_id)
)


def hash_of(secret: str) -> str:
    """The SHA-256 in hex by which gateways look a key up."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    connection: Connection,
    tenant_id: str,
    *,
    project: str = projects.DEFAULT,
    name: str | None = None,
    expires_at_ms: int | None = None,
    allowed_models: Sequence[str] | None = None,
    first_key_id: str | None = None,
    by_tenant: bool = False,
) -> NewApiKey:
    """A new key of this tenant. Raises NotFound when it has no such project, or where a model is not there;
    `by_tenant`: or is one that the tenant does not see.
    """
    _require_models(connection, allowed_models, tenant_id if by_tenant else None)
    project_id = projects.find(connection, tenant_id, project).project_id
    secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    row = connection.execute(
        insert(table)
        .values(
            key_id=new_id(KEY_PREFIX),
            hash=hash_of(secret),
            display=f"{SECRET_PREFIX}…{secret[-4:]}",
            name=name,
            tenant_id=tenant_id,
            project_id=project_id,
            expires_at_ms=expires_at_ms,
            models=None if allowed_models is None else sorted(set(allowed_models)),
            first_key_id=first_key_id,
        )
        .returning(table)
    ).one()
    outbox.record(connection, ChangeKind.KEY, row.key_id)
    return NewApiKey(_key(row), secret)


def find(connection: Connection, key_id: str, *, tenant_id: str | None = None) -> ApiKey:
    """By id, revoked or not; with a tenant, only one of that tenant. Raises NotFound."""
    row = connection.execute(_QUERY.where(table.c.key_id == key_id)).one_or_none()
    if row is None or tenant_id not in {None, row.tenant_id}:
        raise NotFound(f"There is no key {key_id!r}; `taas key list` shows those that are.", param="key_id")
    return _key(row)


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    tenant_id: str | None = None,
    name: str | None = None,
    status: Status | None = None,
    project_id: str | None = None,
    revoked: bool = True,
) -> Page[ApiKey]:
    """Keys of one tenant or of all, oldest first; those whose name contains `name`, those in this status,
    those of a project. `revoked`: revoked ones, too.
    """
    query = _QUERY
    if not revoked:
        query = query.where(table.c.revoked_ms.is_(None))
    if project_id is not None:
        query = query.where(table.c.project_id == project_id)
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    if name is not None:
        query = query.where(contains(table.c.name, name))
    if status is not None:
        query = query.where(_STATUS.in_([status]))
    return read_page(connection, query, _OLDEST_FIRST, _key, asked)


def revoke(connection: Connection, key_id: str) -> ApiKey:
    """Revoke the key for good. Revoking again changes nothing and keeps the first time. Raises NotFound."""
    find(connection, key_id)
    revoked_ms = func.coalesce(table.c.revoked_ms, NOW_MS)
    connection.execute(update(table).where(table.c.key_id == key_id).values(revoked_ms=revoked_ms))
    outbox.record(connection, ChangeKind.KEY, key_id)
    return find(connection, key_id)


def change(connection: Connection, key_id: str, wanted: KeyChange, *, by_tenant: bool = False) -> ApiKey:
    """Set what is given. Raises NotFound, as `create` does; Conflict for a revoked key."""
    found = find(connection, key_id)
    if found.revoked_ms is not None:
        raise Conflict(f"Key {key_id} is revoked, for good.", param="key_id", code="key_revoked")
    _require_models(connection, wanted.models, found.tenant_id if by_tenant else None)
    columns: dict[str, Any] = {}
    if wanted.name is not None:
        columns["name"] = wanted.name
    if wanted.expires_at_ms is not None or wanted.for_good:
        columns["expires_at_ms"] = wanted.expires_at_ms
    if wanted.models is not None or wanted.any_model:
        columns["models"] = None if wanted.models is None else sorted(set(wanted.models))
    if columns:
        connection.execute(update(table).where(table.c.key_id == key_id).values(columns))
        outbox.record(connection, ChangeKind.KEY, key_id)
    return find(connection, key_id)


def rotate(connection: Connection, key_id: str, *, ends_ms: int) -> NewApiKey:
    """A new key with the same rights and limits, whose requests count in the same budgets; this one ends at
    the given moment, or earlier if it expires. Raises NotFound; Conflict for a key that is revoked or has
    expired.
    """
    old = find(connection, key_id)
    if old.status == "expired":
        raise Conflict(f"Key {key_id} has expired; make another.", param="key_id", code="key_expired")
    until_ms = ends_ms if old.expires_at_ms is None else min(ends_ms, old.expires_at_ms)
    change(connection, key_id, KeyChange(expires_at_ms=until_ms))
    made = create(
        connection,
        old.tenant_id,
        project=old.project_id,
        name=old.name,
        expires_at_ms=old.expires_at_ms,
        allowed_models=old.models,
        first_key_id=old.first_key_id or key_id,
    )
    _copy_limits(connection, key_id, made.key.key_id)
    outbox.record(connection, ChangeKind.TENANT, old.tenant_id)
    return made


def _copy_limits(connection: Connection, of: str, to: str) -> None:
    columns = quota_limit.c
    kept = [each for each in columns if each.name not in {"limit_id", "key_id", "created_ms", "updated_ms"}]
    query = select(literal(to), *kept).where(columns.key_id == of)
    connection.execute(insert(quota_limit).from_select([columns.key_id, *kept], query))


def _require_models(connection: Connection, names: Sequence[str] | None, seen_by: str | None) -> None:
    if names is None:
        return
    query = select(model.c.name).where(model.c.name.in_(names))
    if seen_by is not None:
        named = select(model_audience.c.model).where(model_audience.c.tenant_id == seen_by)
        internal = exists().where(tenant.c.tenant_id == seen_by, tenant.c.kind == "internal")
        query = query.where(
            (model.c.visible == "everyone")
            | ((model.c.visible == "internal") & internal)
            | model.c.name.in_(named)
        )
    known = set(connection.execute(query).scalars())
    for name in names:
        if name not in known:
            raise NotFound(
                f"There is no model {name!r}; `taas model list` shows those that are.", param="models"
            )


def _key(row: Row[Any]) -> ApiKey:
    fields = dict(row._mapping)
    return ApiKey(**{**fields, "models": None if fields["models"] is None else tuple(fields["models"])})
