"""Routes of batches, for the operator and for admins of tenants. What they hold is never shown."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy import Row

from billing import batches
from billing.accounts import audit_log
from billing.api.answer import Listing
from billing.api.batch_answers import BatchAnswer
from billing.api.control import Control
from billing.api.fields import TenantQuery
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import tenants
from billing.wire.batch_statuses import STATUSES

router = APIRouter(prefix="/admin/v1/batches", tags=["batches"], dependencies=[KNOWN_QUERY])

# A type checker cannot know what is in a tuple.
if TYPE_CHECKING:
    Status = str
else:
    Status = Literal[STATUSES]
BatchId = Annotated[str, Path(max_length=64, pattern=r"^[a-z]{1,16}_[0-9a-f]{16}$")]


@router.get("", response_model=Listing[BatchAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    status: Annotated[Status | None, Query(description="In this status only.")] = None,
) -> dict[str, Any]:
    """The batches of a tenant, or of all, the newest first."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        found = batches.list_page(connection, asked, tenant_id=tenant_id, status=status)
        names = tenants.names(connection, [row.tenant_id for row in found.rows])
        return listing(found, lambda row: _shown(row, names[row.tenant_id]))


@router.get("/{batch}", response_model=BatchAnswer)
def show(batch: BatchId, control: Control) -> dict[str, Any]:
    """One batch."""
    with control.reading() as connection:
        row = batches.find(connection, batch, tenant_id=control.tenant_id)
        return _shown(row, tenants.names(connection, [row.tenant_id])[row.tenant_id])


@router.post("/{batch}/cancel", response_model=BatchAnswer)
def cancel(batch: BatchId, control: Control, response: Response) -> dict[str, Any]:
    """Begin no further line of a batch. What is under way is completed, delivered and billed."""
    with control.changing(response) as connection:
        tenant_id = batches.find(connection, batch, tenant_id=control.tenant_id).tenant_id
        row = batches.cancel(connection, batch)
        audit_log.append(connection, "batch", batch, {"status": row.status}, tenant_id=tenant_id)
        return _shown(row, tenants.names(connection, [row.tenant_id])[row.tenant_id])


def _shown(row: Row[Any], tenant_name: str) -> dict[str, Any]:
    tokens = {"prompt": row.input_tokens, "cached": row.cached_tokens, "output": row.output_tokens}
    return {
        "batch": row.batch_id,
        "dialect": row.dialect,
        "tenant": row.tenant_id,
        "tenant_name": tenant_name,
        "project": row.project,
        "key_id": row.key_id,
        "route": row.route,
        "model": row.model,
        "status": row.status,
        "lines": {name: getattr(row, name) for name in ("total", "completed", "failed", "unserved")},
        "tokens": tokens,
        "estimate_tokens": row.estimate_tokens,
        "errors": row.errors,
        "created_ms": row.created_ms,
        "expires_ms": row.expires_ms,
        "times": row.times,
    }
