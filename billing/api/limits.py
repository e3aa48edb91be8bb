"""Routes of limits."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field, create_model

from billing.api.answer import Listing
from billing.api.catalogue_answers import LimitAnswer, LimitSet
from billing.api.control import Control
from billing.api.fields import COUNT_MAX, UNITS_MAX, Body, ModelOrAny, Name, TenantQuery
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import limits, tenants
from billing.catalogue.limits import ANY_MODEL, StoredLimit
from billing.contracts import store
from billing.contracts.limits_beside import undercut_by_limits
from billing.wire.limits import FIELDS, NAMES, LimitKind

router = APIRouter(prefix="/admin/v1/limits", tags=["limits"], dependencies=[KNOWN_QUERY])

KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
Amount = Annotated[int, Field(ge=0, le=UNITS_MAX)]
_LARGE = (LimitKind.UNITS, LimitKind.TOKENS)


class _Whose(Body):
    tenant: Name | None = None
    key_id: KeyId | None = None
    model: ModelOrAny = ANY_MODEL


_AMOUNTS: Any = {
    each.name: (Amount | None if each.kind in _LARGE else Count | None, Field(None, description=each.words))
    for each in FIELDS
}


class LimitChange(create_model("_Amounts", __base__=_Whose, **_AMOUNTS)):  # type: ignore[misc]
    """The limits of a tenant or a key on a model (`*`: on every model). Fields that are not given stay; null
    removes a limit; 0 admits nothing.
    """


@router.put("", response_model=LimitSet)
def put(body: LimitChange, control: Control, response: Response) -> dict[str, Any]:
    """Set limits. Levels stay: a changed limit does not start a fresh minute. `warnings`: contracts that it
    could undercut.
    """
    given = body.model_dump(exclude_unset=True, include=set(NAMES))
    with control.changing(response) as connection:
        subject = limits.find_subject(connection, body.tenant, body.key_id)
        limit = limits.put(connection, subject, body.model, given)
        names = tenants.names(connection, [limit.tenant_id])
        warnings = undercut_by_limits(connection, limit.tenant_id, store.now_ms(connection))
    return {**_shown(limit, names), "warnings": warnings}


@router.get("", response_model=Listing[LimitAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    key_id: Annotated[KeyId | None, Query()] = None,
    model: Annotated[ModelOrAny | None, Query(description="On this model only; `*`: those on each.")] = None,
) -> dict[str, Any]:
    """The limits of a tenant and its keys, of one key, or all."""
    with control.reading() as connection:
        owner = tenant or control.tenant_id
        named = owner is not None or key_id is not None
        subject = limits.find_subject(connection, owner, key_id, only=control.tenant_id) if named else None
        found = limits.list_page(connection, asked, subject, model)
        names = tenants.names(connection, [limit.tenant_id for limit in found.rows])
        return listing(found, lambda limit: _shown(limit, names))


@router.delete("", response_model=LimitAnswer)
def remove(
    control: Control,
    response: Response,
    tenant: TenantQuery = None,
    key_id: Annotated[KeyId | None, Query()] = None,
    model: Annotated[ModelOrAny, Query()] = ANY_MODEL,
) -> dict[str, Any]:
    """Remove one entry. The answer shows it."""
    with control.changing(response) as connection:
        limit = limits.remove(connection, limits.find_subject(connection, tenant, key_id), model)
        names = tenants.names(connection, [limit.tenant_id])
    return _shown(limit, names)


def _shown(limit: StoredLimit, tenant_names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tenant": limit.tenant_id,
        "tenant_name": tenant_names[limit.tenant_id],
        "key_id": limit.key_id,
        "model": limit.model,
        **limit.amounts,
        "updated_ms": limit.updated_ms,
    }
