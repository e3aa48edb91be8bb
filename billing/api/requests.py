"""Routes of single requests: their receipts, and stopping them. The gateway asks for receipts on behalf of
tenants.
"""

from typing import Any

from fastapi import APIRouter, Response

from billing.accounts import audit_log
from billing.accounts.roles import Role
from billing.api.capacity_answers import StopAnswer
from billing.api.control import Control
from billing.api.fields import IdPath, TenantQuery
from billing.api.query import KNOWN_QUERY
from billing.api.usage_answers import ReceiptAnswer
from billing.catalogue import tenants
from billing.catalogue.projection import announce_stop
from billing.ledger.receipt import find_receipt, is_waiting
from billing.refusals import Conflict, Invalid, NotFound

router = APIRouter(prefix="/admin/v1/requests", tags=["requests"], dependencies=[KNOWN_QUERY])


@router.get("/{request_id}", response_model=ReceiptAnswer, response_model_exclude_unset=True)
def show(request_id: IdPath, control: Control, tenant: TenantQuery = None) -> dict[str, Any]:
    """The receipt: produced, delivered, billed, absorbed, and why. With `tenant`, only if the request is that
    tenant's.
    """
    if tenant is None and control.caller.role is Role.SERVICE:
        raise Invalid("Say whose request it is: the service key reads no others.", param="tenant")
    with control.reading() as connection:
        tenant_id = None if tenant is None else tenants.find(connection, tenant).tenant_id
        receipt = find_receipt(connection, control.redis, request_id, tenant=tenant_id)
    if receipt is None:
        raise NotFound(f"There is no request {request_id!r}.", param="request_id")
    return receipt.to_json()


@router.post("/{request_id}/stop", status_code=202, response_model=StopAnswer)
def stop(request_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Have the gateways stop a request; its tenant is not billed for it. 404 if it is unknown, 409 if it has
    ended.
    """
    with control.reading() as connection:
        receipt = find_receipt(connection, control.redis, request_id)
    if receipt is None and not is_waiting(control.redis, request_id):
        raise NotFound(f"There is no request {request_id!r}.", param="request_id")
    if receipt is not None and receipt.state != "open":
        raise Conflict(
            f"Request {request_id} has ended: {receipt.facts['ending']}.", param="request_id", code="ended"
        )
    tenant_id = None if receipt is None else receipt.tenant
    # Logged first: nothing is ordered that is in no log.
    with control.changing(response) as connection:
        audit_log.append(connection, "request", request_id, {"stopped": True}, tenant_id=tenant_id)
    announce_stop(control.redis, request_id)
    return {"request_id": request_id, "announced": True}
