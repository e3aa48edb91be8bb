"""The receipt of a request, as billing has it and as its tenant may see it."""

from typing import Any

import httpx

from billing.wire.usage_event import COLUMNS, INSIDE
from gateway.billing_client import BillingClient
from gateway.edge.client import opaque_instance
from gateway.errors import UsageUnavailable

# What a tenant may see of a receipt; its instance is shown as in `x-taas-instance`.
RECEIPT_FIELDS = {
    "state", "kind", "parts", "pricing", "price", "amount", "currency", *(COLUMNS.keys() - set(INSIDE)),
}  # fmt: skip


async def find_receipt(billing: BillingClient, request_id: str, tenant: str) -> dict[str, Any] | None:
    """The receipt of this tenant's request, also of one that runs; None if there is none. Raises
    UsageUnavailable.
    """
    try:
        found = await billing.get(f"/admin/v1/requests/{request_id}", {"tenant": tenant})
    except httpx.HTTPError as exc:
        raise UsageUnavailable from exc
    if found.status_code == 404:
        return None
    if found.status_code != 200:
        raise UsageUnavailable
    return tenants_view(found.json())


def tenants_view(receipt: dict[str, Any]) -> dict[str, Any]:
    """A receipt without the names of our machines and processes; the instance as in `x-taas-instance`."""
    shown = {name: value for name, value in receipt.items() if name in RECEIPT_FIELDS}
    if isinstance(receipt.get("instance"), str):
        shown["instance"] = opaque_instance(receipt["instance"]).decode()
    return shown
