"""What a tenant is shown of its receipt."""

from gateway.edge.client import opaque_instance
from gateway.listing import tenants_view


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
