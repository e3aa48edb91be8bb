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
    fields = {field.alias or name for name, field in ReceiptAnswer.model_fields.items()}
    assert fields - RECEIPT_FIELDS == {"instance", "epoch", "gateway", "pool", "cell", "provider", "orphan"}
    assert tenants_view({"request_id": "req_1", "a_new_field": "node-17"}) == {"request_id": "req_1"}
