"""What a tenant is shown of its receipt."""

from billing.api.usage_answers import ReceiptAnswer
from gateway.edge.client import opaque_instance
from gateway.receipts import RECEIPT_FIELDS, tenants_view


def test_a_receipt_names_none_of_our_machines() -> None:
    shown = tenants_view(
        {
            "request_id": "req_1",
            "instance": "m-host7-8100",
            "epoch": "1",
            "gateway": "host7-12-ab",
            "pool": "p",
            "amount": "0.1",
        }
    )
    assert shown == {
        "request_id": "req_1",
        "instance": opaque_instance("m-host7-8100").decode(),
        "amount": "0.1",
    }
    assert "host7" not in str(shown)


def test_of_every_field_of_a_receipt_somebody_has_decided_whether_tenants_see_it() -> None:
    """A new field of the event is seen unless it is in `INSIDE`: whoever adds one decides that here, too."""
    inside = {"instance", "epoch", "gateway", "pool", "cell", "provider", "orphan"}
    assert {
        "request_id", "state", "kind", "tenant", "project", "key_id", "model", "route", "stream", "class",
        "contract", "weights", "samples", "started_ms", "first_token_ms", "ended_ms", "waited_ms", "ending",
        "usage_source", "anomaly", "produced", "delivered", "billed", "absorbed", "units_mu", "decision",
        "http_status", "ignored", "line", "parts", "pricing", "price", "amount", "currency",
    } == RECEIPT_FIELDS  # fmt: skip
    fields = {field.alias or name for name, field in ReceiptAnswer.model_fields.items()}
    assert fields == RECEIPT_FIELDS | inside
    assert tenants_view({"request_id": "req_1", "a_new_field": "node-17"}) == {"request_id": "req_1"}
