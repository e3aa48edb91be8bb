"""Routes of the proof: signed checkpoints of a tenant's chain of usage."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from billing.api.control import Control
from billing.api.fields import Name
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.signing_key import signing_key
from billing.api.usage_answers import CheckpointListing
from billing.ledger.checkpoints import Checkpoint, list_checkpoints
from billing.wire.evidence import public_pem

router = APIRouter(prefix="/admin/v1/usage", tags=["usage"], dependencies=[KNOWN_QUERY])

Whose = Annotated[Name, Query(description="A tenant's id or name.")]


@router.get("/checkpoints", response_model=CheckpointListing)
def checkpoints(control: Control, tenant: Whose, page: PageQuery) -> dict[str, Any]:
    """Where the tenant's chain stood at the end of each day that has usage, signed; newest first. Gateways
    ask on the tenant's behalf.
    """
    with control.reading() as connection:
        found = control.tenant_named(connection, tenant)
        shown = listing(list_checkpoints(connection, found.tenant_id, page), Checkpoint.to_json)
    path = control.evidence_key_file
    return shown | {"public_key": None if path is None else public_pem(signing_key(path))}
