"""Limits in SQL: how much a tenant, or one of its keys, may ask for in a time, and have open at once. It
knows neither HTTP nor Redis.

A limit holds per model; the entry of a model wins over `*`, field by field (docs/interfaces.md §3). Null is
no limit.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import api_keys, models, outbox, tenants
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Invalid, NotFound
from billing.schema.any_of import any_of
from billing.schema.catalogue import quota_limit as table
from billing.schema.clock import NOW_MS
from billing.wire.limits import NAMES, LimitEntry, Limits

ANY_MODEL: Final = "*"


@dataclass(frozen=True, slots=True)
class Subject:
    """The owner of a limit: a tenant (`key_id` None) or one of its keys."""

    tenant_id: str
    key_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLimit:
    """One entry; None is no limit. Units are whole work units."""

    tenant_id: str
    key_id: str | None
    model: str
    amounts: LimitEntry
    created_ms: int
    updated_ms: int


_BY_SUBJECT: Final[Order[StoredLimit]] = Order(
    "limits",
    lambda limit: (limit.tenant_id, limit.key_id or "", limit.model),
    (str, str, str),
    (table.c.tenant_id, func.coalesce(table.c.key_id, ""), table.c.model),
)


def find_subject(
    connection: Connection, tenant: str | None, key_id: str | None, *, only: str | None = None
) -> Subject:
    """The owner of a limit by name; with `only`, within this tenant. Raises NotFound; Invalid if neither is
    named or the key is not the tenant's.
    """
    if key_id is not None:
        key = api_keys.find(connection, key_id, tenant_id=only)
        if tenant is not None and tenants.find(connection, tenant, only=only).tenant_id != key.tenant_id:
            raise Invalid(f"The key {key_id!r} is not one of tenant {tenant!r}.", param="key_id")
        return Subject(key.tenant_id, key.key_id)
    if tenant is None:
        raise Invalid("Name the tenant or the key whose limit it is.", param="tenant")
    return Subject(tenants.find(connection, tenant, only=only).tenant_id, None)


def put(connection: Connection, subject: Subject, model: str, given: Mapping[str, int | None]) -> StoredLimit:
    """Set only the fields given: None removes a limit, and a field that is not given stays. Raises NotFound,
    Invalid.
    """
    if not given:
        raise Invalid(f"Give at least one of {', '.join(NAMES)}.", param=NAMES[0])
    if model != ANY_MODEL:
        models.find(connection, model)
    values = {name: given[name] for name in NAMES if name in given}
    row = connection.execute(
        insert(table)
        .values(tenant_id=subject.tenant_id, key_id=subject.key_id, model=model, **values)
        .on_conflict_do_update(
            index_elements=["tenant_id", "key_id", "model"], set_={**values, "updated_ms": NOW_MS}
        )
        .returning(table)
    ).one()
    _changed(connection, subject)
    return _limit(row)


def list_page(
    connection: Connection, asked: PageRequest, subject: Subject | None = None, model: str | None = None
) -> Page[StoredLimit]:
    """Every limit; or those of a tenant, its keys' among them; or those of a key; or those on a model."""
    query = select(table)
    if model is not None:
        query = query.where(table.c.model == model)
    if subject is not None and subject.key_id is not None:
        query = query.where(table.c.key_id == subject.key_id)
    elif subject is not None:
        query = query.where(table.c.tenant_id == subject.tenant_id)
    return read_page(connection, query, _BY_SUBJECT, _limit, asked)


@dataclass(frozen=True, slots=True)
class Table:
    """The limits of tenants (None) and of their keys, by model."""

    entries: Mapping[tuple[str, str | None, str], LimitEntry]

    def for_model(self, tenant_id: str, key_id: str | None, model: str) -> Limits:
        """The limits for one model, as the scripts get them."""
        own, rest = (self.entries.get((tenant_id, key_id, name)) for name in (model, ANY_MODEL))
        return Limits.of_entries(own, rest)


def table_of(connection: Connection, tenant_ids: Collection[str]) -> Table:
    """The limits of these tenants and of their keys."""
    rows = connection.execute(select(table).where(table.c.tenant_id == any_of(tenant_ids)))
    return Table(
        {(row.tenant_id, row.key_id, row.model): {name: row._mapping[name] for name in NAMES} for row in rows}
    )


def remove(connection: Connection, subject: Subject, model: str) -> StoredLimit:
    """Remove the whole entry. Raises NotFound if there is none."""
    row = connection.execute(
        delete(table).where(_of(subject), table.c.model == model).returning(table)
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no limit on {model!r} here.", param="model")
    _changed(connection, subject)
    return _limit(row)


def _of(subject: Subject) -> ColumnElement[bool]:
    return (table.c.tenant_id == subject.tenant_id) & table.c.key_id.is_not_distinct_from(subject.key_id)


def _changed(connection: Connection, subject: Subject) -> None:
    if subject.key_id is None:
        outbox.record(connection, ChangeKind.TENANT, subject.tenant_id)
    else:
        outbox.record(connection, ChangeKind.KEY, subject.key_id)


def _limit(row: Row[Any]) -> StoredLimit:
    return StoredLimit(
        tenant_id=row.tenant_id,
        key_id=row.key_id,
        model=row.model,
        amounts={name: row._mapping[name] for name in NAMES},
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
    )
