"""Every route has one entry in the table of rights, and each role gets as far as its entry says."""

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import Route

from billing.accounts.roles import MAY_GIVE, Role
from billing.api.app import build_app
from billing.api.rights import RIGHTS, may_call, routes_of
from billing.settings import BillingSettings
from tests.billing.api.conftest import ADMIN_KEY, SERVICE_KEY, KeyOf, bearing

TENANT_KEY = "sk-" + "a" * 43
STRANGERS = {
    "none": None,
    "wrong": "Bearer wrong",
    "not bearer": f"Basic {ADMIN_KEY}",
    "empty": "Bearer ",
    "no such admin key": "Bearer sk-admin-" + "a" * 43,
    "tenant": f"Bearer {TENANT_KEY}",
}


def test_every_route_has_an_entry_and_every_entry_a_route(app: FastAPI):
    assert sorted(routes_of(app)) == sorted(RIGHTS)


def test_a_route_without_an_entry_is_roots(app: FastAPI, nobody: TestClient, key_of: KeyOf):
    app.router.routes.append(Route("/forgotten", lambda request: None))
    assert "GET /forgotten" not in RIGHTS
    assert nobody.get("/forgotten").status_code == 401
    for key in (SERVICE_KEY, key_of(Role.OPERATOR), key_of(Role.ADMIN)):
        assert nobody.get("/forgotten", headers=bearing(key)).status_code == 403


@pytest.mark.parametrize("role", Role)
def test_fault_20_each_route_lets_in_whom_its_entry_names(nobody: TestClient, key_of: KeyOf, role: Role):
    headers = {} if role is Role.NOBODY else bearing(key_of(role))
    for route, roles in RIGHTS.items():
        answer = ask(nobody, route, headers)
        if role in roles or role is Role.ROOT:
            assert answer.status_code not in {401, 403}, route
            continue
        assert answer.status_code == (401 if role is Role.NOBODY else 403), route
        if answer.request.method != "HEAD":
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, route
            assert error["code"] == ("invalid_admin_key" if role is Role.NOBODY else "role_not_allowed")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_fault_20_no_route_but_the_public_ones_lets_in_a_stranger(nobody: TestClient, stranger: str):
    headers = {} if STRANGERS[stranger] is None else {"authorization": STRANGERS[stranger]}
    for route, roles in RIGHTS.items():
        public = Role.NOBODY in roles
        refusal = {403} if stranger == "tenant" else {401}
        assert (ask(nobody, route, headers).status_code in refusal) is not public, route


def test_who_only_reads_may_call_no_route_that_changes_something():
    changing = [route for route in RIGHTS if route.split()[0] not in {"GET", "HEAD"}]
    assert len(changing) > 40
    for route in changing:
        assert Role.VIEWER not in RIGHTS[route], route
        asks = route.endswith(("/quote", "/what-if", "/compare"))
        assert (Role.AUDITOR in RIGHTS[route]) == asks, route


def test_nobody_gives_a_role_that_may_do_more():
    for giver, given in MAY_GIVE.items():
        for role in given:
            more = [route for route, roles in RIGHTS.items() if role in roles and not may_call(giver, route)]
            assert not more, (giver, role)


def ask(client: TestClient, route: str, headers: dict[str, str]) -> Any:
    method, template = route.split(" ", 1)
    return client.request(method, re.sub(r"\{[^}]+\}", "nothing", template), headers=headers)


@pytest.mark.parametrize(
    "path", ["/", "/admin/v1/nothing", "/admin/v1/tenants/", "//admin/v1/tenants", "/redoc", "/admin"]
)
def test_unknown_paths_tell_strangers_nothing_and_the_admin_404(
    nobody: TestClient, admin: TestClient, key_of: KeyOf, path: str
):
    assert nobody.get(path).status_code == 401
    if path != "/admin/v1/tenants/":  # a tenant without a name
        assert nobody.get(path, headers=bearing(key_of(Role.ADMIN))).status_code == 403
    for answer in (admin.get(path), nobody.get(path, headers=bearing(key_of(Role.AUDITOR)))):
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
