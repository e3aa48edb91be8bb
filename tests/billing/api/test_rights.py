"""Every route has one entry in the table of rights, and each role gets as far as its entry says."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import Route

from billing.api.app import build_app
from billing.api.rights import RIGHTS, Right, routes_of
from billing.settings import BillingSettings
from tests.billing.api.conftest import ADMIN_KEY, SERVICE_KEY

TENANT_KEY = "sk-" + "a" * 43
ROLES = {
    "none": None,
    "wrong": "Bearer wrong",
    "not bearer": f"Basic {ADMIN_KEY}",
    "empty": "Bearer ",
    "tenant": f"Bearer {TENANT_KEY}",
    "service": f"Bearer {SERVICE_KEY}",
    "admin": f"Bearer {ADMIN_KEY}",
}
STATUS_OF_STRANGERS = {"none": 401, "wrong": 401, "not bearer": 401, "empty": 401, "tenant": 403}


def test_every_route_has_an_entry_and_every_entry_a_route(app: FastAPI):
    assert sorted(routes_of(app)) == sorted(RIGHTS)


def test_a_route_without_an_entry_is_the_admins(app: FastAPI, nobody: TestClient):
    app.router.routes.append(Route("/forgotten", lambda request: None))
    assert "GET /forgotten" not in RIGHTS
    assert nobody.get("/forgotten").status_code == 401
    assert nobody.get("/forgotten", headers={"authorization": f"Bearer {SERVICE_KEY}"}).status_code == 403


@pytest.mark.parametrize("role", ROLES)
def test_fault_20_each_route_lets_in_whom_its_entry_names(nobody: TestClient, role: str):
    headers = {} if ROLES[role] is None else {"authorization": ROLES[role]}
    for route, right in RIGHTS.items():
        method, template = route.split(" ", 1)
        answer = nobody.request(method, re.sub(r"\{[^}]+\}", "nothing", template), headers=headers)
        admitted = right is Right.PUBLIC or role == "admin" or (right is Right.SERVICE and role == "service")
        refusal = 403 if role == "service" else STATUS_OF_STRANGERS.get(role)
        if admitted:
            assert answer.status_code not in {401, 403}, route
        else:
            assert answer.status_code == refusal, route
            if method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, route


@pytest.mark.parametrize(
    "path", ["/", "/admin/v1/nothing", "/admin/v1/tenants/", "//admin/v1/tenants", "/redoc", "/admin"]
)
def test_unknown_paths_tell_strangers_nothing_and_the_admin_404(
    nobody: TestClient, admin: TestClient, path: str
):
    assert nobody.get(path).status_code == 401
    answer = admin.get(path)
    assert answer.status_code in {400, 404}
    assert answer.json()["error"]["code"] in {"unknown_route", "invalid_value"}


def test_two_authorization_headers_are_nobody(nobody: TestClient):
    headers = [("authorization", f"Bearer {ADMIN_KEY}"), ("authorization", "Bearer other")]
    assert nobody.get("/admin/v1/tenants", headers=headers).status_code == 401


def test_a_key_that_is_not_ascii_is_refused_not_a_failure(nobody: TestClient):
    answer = nobody.get("/admin/v1/tenants", headers=[(b"authorization", "Bearer käse\x80".encode())])
    assert answer.status_code == 401


def test_a_stranger_is_refused_before_the_body_is_read(nobody: TestClient):
    assert nobody.post("/admin/v1/tenants", content=b"{not json").status_code == 401


def test_an_unset_admin_key_lets_nobody_in(database, raw_redis):
    client = TestClient(build_app(BillingSettings(admin_key="", service_key=""), database, raw_redis))
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer"}):
        assert client.get("/admin/v1/tenants", headers=headers).status_code == 401
        assert client.get("/admin/v1/requests/x", headers=headers).status_code == 401


def test_the_service_key_reads_receipts_only_of_the_tenant_it_names(nobody: TestClient):
    headers = {"authorization": f"Bearer {SERVICE_KEY}"}
    answer = nobody.get("/admin/v1/requests/req-1", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tenant")
