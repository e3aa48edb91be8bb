"""API keys in SQL: made once, shown once, kept as a hash. Knows neither HTTP nor Redis.

A key is `sk-` and 256 random bits; nothing here can give it back. Revoked keys stay as rows, because usage events name them.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, update

from billing import outbox, projects
from billing.names import KEY_PREFIX, new_id
from billing.outbox import ChangeKind
from billing.refusals import NotFound
from billing.schema.catalogue import NOW_MS
from billing.schema.catalogue import api_key as table

SECRET_PREFIX: Final = "sk-"  # noqa: S105
# 32 bytes are 43 characters of URL-safe base 64.
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. `display` is its beginning and its last four characters."""

    key_id: str
    hash: str = field(repr=False)
    display: str
    name: str | None
    tenant_id: str
    project_id: str
    expires_at_ms: int | None
    revoked_ms: int | None
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key at its making: the only moment at which `secret` is known."""

    key: ApiKey
    secret: str = field(repr=False)


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
) -> NewApiKey:
    """A new key of this tenant. Raises NotFound when it has no such project."""
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
        )
        .returning(table)
    ).one()
    outbox.record(connection, ChangeKind.KEY, row.key_id)
    return NewApiKey(_key(row), secret)


def find(connection: Connection, key_id: str) -> ApiKey:
    """By id, revoked or not. Raises NotFound."""
    row = connection.execute(select(table).where(table.c.key_id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no key {key_id!r}; `taas key list` shows those that are.", param="key_id")
    return _key(row)


def list_all(connection: Connection, tenant_id: str | None = None) -> list[ApiKey]:
    """Of one tenant or of all, revoked ones too, oldest first."""
    query = select(table).order_by(table.c.created_ms, table.c.key_id)
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    return [_key(row) for row in connection.execute(query)]


def revoke(connection: Connection, key_id: str) -> ApiKey:
    """It ceases to work, for good; again is a no-op that keeps the first time. Raises NotFound."""
    find(connection, key_id)
    revoked_ms = func.coalesce(table.c.revoked_ms, NOW_MS)
    connection.execute(update(table).where(table.c.key_id == key_id).values(revoked_ms=revoked_ms))
    outbox.record(connection, ChangeKind.KEY, key_id)
    return find(connection, key_id)


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(**row._mapping)
