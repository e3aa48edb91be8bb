"""Queries: names that a route does not know are refused by name."""

import pytest
from fastapi.testclient import TestClient

from billing.api.app import ROUTERS


@pytest.mark.parametrize(
    "path", ["tenants", "keys", "models", "instances", "usage", "contracts", "audit", "prices"]
)
def test_an_unknown_name_is_refused(admin: TestClient, path: str) -> None:
    answer = admin.get(f"/admin/v1/{path}", params={"tennant": "acme"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "unknown_parameter"
    assert answer.json()["error"]["param"] == "tennant"


def test_what_a_route_knows_is_taken(admin: TestClient) -> None:
    for name, value in {"limit": 5, "status": "active", "archived": "true"}.items():
        assert admin.get("/admin/v1/tenants", params={name: value}).status_code == 200, name
    assert admin.get("/admin/v1/usage", params={"from": 0}).status_code == 200


def test_every_router_of_the_api_has_the_rule() -> None:
    without = [router.prefix for router in ROUTERS if router.prefix and not router.dependencies]
    assert without == []
