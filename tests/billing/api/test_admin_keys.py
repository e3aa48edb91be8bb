"""Admin keys: what they open, until when, and what of other tenants they never show."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text, update

from billing.accounts.roles import OF_TENANT, Role
from billing.api.rights import RIGHTS
from billing.schema.accounts import admin_key
from tests.billing.api.conftest import KeyOf, bearing
from tests.billing.api.test_batch_routes import add

Make = Callable[..., dict[str, Any]]


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_key_opens_until_it_expires_or_is_revoked(
    admin: TestClient, nobody: TestClient, made: Make, database: Engine
):
    key = made("admin-keys", role="auditor", expires_at_ms="2999-01-01")
    opens = bearing(key["key"])
    assert admin.get(f"/admin/v1/admin-keys/{key['key_id']}").json()["last_used_ms"] is None
    assert nobody.get("/admin/v1/tenants", headers=opens).status_code == 200
    shown = admin.get(f"/admin/v1/admin-keys/{key['key_id']}").json()
    assert shown["last_used_ms"] > 0
    assert shown["display"] == f"sk-admin-…{key['key'][-4:]}"
    assert key["key"] not in admin.get("/admin/v1/admin-keys").text
    with database.begin() as connection:
        connection.execute(update(admin_key).values(expires_at_ms=1))
    assert code(nobody.get("/admin/v1/tenants", headers=opens)) == (401, "invalid_admin_key")
    assert code(admin.post(f"/admin/v1/admin-keys/{key['key_id']}/rotate", json={})) == (409, "key_expired")
    with database.begin() as connection:
        connection.execute(update(admin_key).values(expires_at_ms=None))
    assert nobody.get("/admin/v1/tenants", headers=opens).status_code == 200
    for _ in range(2):
        assert admin.delete(f"/admin/v1/admin-keys/{key['key_id']}").json()["status"] == "revoked"
    assert nobody.get("/admin/v1/tenants", headers=opens).status_code == 401
    assert admin.post("/admin/v1/admin-keys", json={"role": "auditor", "expires_at_ms": 1}).status_code == 400


def test_a_use_is_noted_once_a_minute(nobody: TestClient, made: Make, database: Engine):
    opens = bearing(made("admin-keys", role="auditor")["key"])

    def last_used() -> int:
        nobody.get("/admin/v1/tenants", headers=opens)
        with database.connect() as connection:
            return int(connection.execute(text("select last_used_ms from admin_key")).scalar_one())

    assert last_used() == last_used()
    with database.begin() as connection:
        connection.execute(update(admin_key).values(last_used_ms=admin_key.c.last_used_ms - 61_000))
    before = last_used()
    assert last_used() == before
    with database.connect() as connection:
        assert connection.execute(text("select count(*) from audit_log")).scalar_one() == 1


def test_a_key_is_rotated_with_a_time_of_grace(admin: TestClient, nobody: TestClient, made: Make):
    old = made("admin-keys", role="finance", name="jane")
    new = admin.post(f"/admin/v1/admin-keys/{old['key_id']}/rotate", json={"overlap_seconds": 3600}).json()
    assert (new["role"], new["name"], new["old"]["key_id"]) == ("finance", "jane", old["key_id"])
    for key in (old["key"], new["key"]):
        assert nobody.get("/admin/v1/prices", headers=bearing(key)).status_code == 200
    last = admin.post(f"/admin/v1/admin-keys/{new['key_id']}/rotate", json={}).json()
    assert nobody.get("/admin/v1/prices", headers=bearing(new["key"])).status_code == 401
    assert nobody.get("/admin/v1/prices", headers=bearing(last["key"])).status_code == 200


def test_nobody_gives_a_role_beyond_its_own(nobody: TestClient, key_of: KeyOf):
    for giver, role, refusal in (
        (Role.OPERATOR, "finance", 403), (Role.ADMIN, "operator", 403), (Role.ADMIN, "auditor", 403),
        (Role.FINANCE, "auditor", 403), (Role.OPERATOR, "auditor", 201), (Role.ADMIN, "viewer", 201),
        (Role.ROOT, "admin", 400), (Role.ROOT, "root", 400), (Role.ROOT, "service", 400),
    ):  # fmt: skip
        headers = bearing(key_of(giver))
        answer = nobody.post("/admin/v1/admin-keys", json={"role": role}, headers=headers)
        assert answer.status_code == refusal, (giver, role, answer.text)
    headers = bearing(key_of(Role.OPERATOR))
    finance = nobody.get("/admin/v1/admin-keys?role=finance", headers=headers).json()["data"][0]["key_id"]
    for method, path in (("DELETE", f"admin-keys/{finance}"), ("POST", f"admin-keys/{finance}/rotate")):
        body = {} if method == "POST" else None
        answer = nobody.request(method, f"/admin/v1/{path}", json=body, headers=headers)
        assert code(answer) == (403, "role_not_allowed")


def test_an_archived_tenants_keys_open_nothing(admin: TestClient, nobody: TestClient, key_of: KeyOf):
    opens = bearing(key_of(Role.ADMIN))
    admin.patch("/admin/v1/tenants/acme", json={"status": "suspended"})
    assert nobody.get("/admin/v1/tenants", headers=opens).status_code == 200
    admin.patch("/admin/v1/tenants/acme", json={"status": "archived"})
    assert nobody.get("/admin/v1/tenants", headers=opens).status_code == 401


def test_an_idempotency_key_is_its_callers_own(nobody: TestClient, key_of: KeyOf, made: Make):
    """The answer to one tenant's request would be another tenant's."""
    mine = bearing(key_of(Role.ADMIN))
    made("tenants", name="bolt")
    theirs = bearing(made("admin-keys", role="admin", tenant="bolt")["key"])
    body = {"role": "viewer"}
    asked = {"json": body, "headers": mine | {"idempotency-key": "k-1"}}
    first = nobody.post("/admin/v1/admin-keys", **asked).json()
    again = nobody.post("/admin/v1/admin-keys", **asked)
    assert again.json() == first | {"key": None}
    other = nobody.post("/admin/v1/admin-keys", json=body, headers=theirs | {"idempotency-key": "k-1"}).json()
    assert (other["tenant_name"], other["key_id"] != first["key_id"]) == ("bolt", True)
    entries = nobody.get("/admin/v1/audit-log", headers=mine).json()["data"]
    assert [each["subject"] for each in entries].count(first["key_id"]) == 1


@pytest.fixture
def theirs(made: Make, admin: TestClient, database: Engine) -> dict[str, str]:
    """Things of the tenant bolt: what names each in a path."""
    tenant = made("tenants", name="bolt")["tenant"]
    made("models", name="m", context_tokens=100)
    made("models", name="secret", context_tokens=100, owner="bolt")
    project = made("projects", tenant="bolt", name="hidden")["project"]
    key = made("keys", tenant="bolt", project="hidden")["key_id"]
    admin.put("/admin/v1/limits", json={"tenant": "bolt", "concurrency": 1})
    budget = admin.put("/admin/v1/budgets", json={"key_id": key, "usd": "1", "per": "day"}).json()["budget"]
    contract = made("contracts", tenant="bolt", pool="m", units=1, until="+1y", notice_days=1, draft=True)[
        "contract"
    ]
    admin_key = made("admin-keys", role="viewer", tenant="bolt")["key_id"]
    made("credits", tenant="bolt", usd="5")
    made("terms", tenant="bolt")
    return {
        "tenants": tenant, "projects": project, "keys": key, "budgets": budget, "contracts": contract,
        "batches": add(database, tenant, 1), "admin-keys": admin_key,
    }  # fmt: skip


def test_fault_20_other_tenants_things_are_not_there(
    nobody: TestClient, key_of: KeyOf, theirs: dict[str, str]
):
    nothing = {name: f"{value[:-4]}0000" for name, value in theirs.items()}
    asks = [
        ("GET", "tenants/{tenants}", None), ("GET", "tenants/bolt", None), ("GET", "keys/{keys}", None),
        ("GET", "keys/{keys}/usage", None), ("PATCH", "keys/{keys}", {"name": "x"}),
        ("POST", "keys/{keys}/rotate", {}), ("DELETE", "keys/{keys}", None),
        ("POST", "keys", {"tenant": "bolt"}), ("POST", "keys", {"tenant": "acme", "project": "{projects}"}),
        ("POST", "keys", {"tenant": "acme", "models": ["secret"]}),
        ("POST", "projects", {"tenant": "bolt", "name": "x"}),
        ("PATCH", "projects/{projects}", {"tenant": "bolt", "name": "x"}),
        ("PATCH", "projects/{projects}", {"tenant": "acme", "name": "x"}),
        ("PUT", "budgets", {"key_id": "{keys}", "usd": "9", "per": "day"}),
        ("PUT", "budgets", {"tenant": "bolt", "project": "hidden", "usd": "9", "per": "day"}),
        ("DELETE", "budgets/{budgets}", None), ("GET", "contracts/{contracts}", None),
        ("GET", "contracts/{contracts}/history", None), ("GET", "batches/{batches}", None),
        ("POST", "batches/{batches}/cancel", None), ("GET", "admin-keys/{admin-keys}", None),
        ("POST", "admin-keys/{admin-keys}/rotate", {}), ("DELETE", "admin-keys/{admin-keys}", None),
        ("POST", "admin-keys", {"role": "viewer", "tenant": "bolt"}),
        *(("GET", f"{noun}?tenant={named}", None) for named in ("bolt", "{tenants}") for noun in (
            "projects", "keys", "limits", "budgets", "contracts", "batches", "admin-keys", "audit-log",
        )),
        ("GET", "limits?key_id={keys}", None),
    ]  # fmt: skip
    headers = bearing(key_of(Role.ADMIN))
    for method, path, body in asks:
        answers = []
        for ids in (theirs, nothing):
            given = body and {
                name: value.format(**ids) if isinstance(value, str) else value for name, value in body.items()
            }
            answers.append(
                nobody.request(method, f"/admin/v1/{path.format(**ids)}", json=given, headers=headers)
            )
        assert [each.status_code for each in answers] == [404, 404], (method, path, answers[0].text)
        # What is another's is refused in the words for what does not exist.
        mine, none = (each.json()["error"] for each in answers)
        for name, value in theirs.items():
            mine["message"] = mine["message"].replace(value, "…")
            none["message"] = none["message"].replace(nothing[name], "…")
        assert mine == none, (method, path)


@pytest.mark.parametrize("role", sorted(OF_TENANT))
def test_fault_20_whatever_a_role_of_a_tenant_may_read_is_the_tenants_own(
    nobody: TestClient, key_of: KeyOf, made: Make, theirs: dict[str, str], api_document: Any, role: Role
):
    headers = bearing(key_of(role))
    key = made("keys", tenant="acme")["key_id"]
    made("admin-keys", role="auditor")
    asked = 0
    for route, roles in RIGHTS.items():
        method, path = route.split(" ", 1)
        if method != "GET" or role not in roles or Role.NOBODY in roles or "{" in path:
            continue
        parameters = api_document["paths"][path]["get"].get("parameters", ())
        query = {each["name"] for each in parameters}
        needed = {
            "start_time": 1_700_000_000,
            "tenant": "acme",
            "period": "2026-11",
            "from": "2026-11-01",
            "until": "2026-11-02",
            "format": "ndjson",
            "contract": theirs["contracts"],
        }
        start = {each["name"]: needed[each["name"]] for each in parameters if each["required"]}
        answer = nobody.get(path, headers=headers, params=start)
        if "contract" in start:
            assert answer.status_code == 404, path
            continue
        assert answer.status_code == 200, (path, answer.text)
        for value in ("bolt", *theirs.values()):
            assert value not in answer.text, path
        if "tenant" in query:
            for named in ("bolt", theirs["tenants"]):
                answer = nobody.get(path, headers=headers, params=start | {"tenant": named})
                assert answer.status_code == 404, (path, answer.text)
        asked += 1
    assert asked > 12
    assert nobody.get(f"/admin/v1/keys/{key}", headers=headers).status_code == 200
    whose = nobody.get("/admin/v1/projects", headers=headers).json()["data"]
    assert {row["tenant_name"] for row in whose} == {"acme"}


def test_a_tenant_sees_its_usage_and_nothing_of_what_it_costs_us(
    admin: TestClient, nobody: TestClient, key_of: KeyOf
):
    mine = nobody.get("/admin/v1/usage?by=tenant", headers=bearing(key_of(Role.VIEWER))).json()
    whole = admin.get("/admin/v1/usage?by=tenant&tenant=acme").json()
    assert mine["tenant"] == whole["tenant"]
    assert whole.keys() - mine.keys() == {"cost_items"}
    hidden = {"uncosted", "untold", "cost", "cost_makers", "margin"}
    assert whole["total"].keys() - mine["total"].keys() == hidden


def test_a_tenants_admin_does_not_see_the_reasons_of_the_operator(
    admin: TestClient, nobody: TestClient, key_of: KeyOf
):
    headers = bearing(key_of(Role.ADMIN))
    admin.patch("/admin/v1/tenants/acme", json={"weight": 2}, headers={"x-reason": "behind with payments"})
    nobody.post(
        "/admin/v1/projects", json={"tenant": "acme", "name": "x"}, headers=headers | {"x-reason": "mine"}
    )
    shown = nobody.get("/admin/v1/audit-log", headers=headers).json()["data"]
    assert [each["why"] for each in shown][:2] == ["mine", None]
    whole = admin.get("/admin/v1/audit-log", params={"tenant": "acme"}).json()["data"]
    assert [each["why"] for each in whole][:2] == ["mine", "behind with payments"]


def test_a_tenant_sets_budgets_of_its_projects_and_keys_and_not_its_own(
    admin: TestClient, nobody: TestClient, key_of: KeyOf
):
    headers = bearing(key_of(Role.BILLING))
    own = admin.put("/admin/v1/budgets", json={"tenant": "acme", "usd": "5", "per": "month"}).json()["budget"]
    body = {"usd": "500", "per": "month"}
    for answer in (
        nobody.put("/admin/v1/budgets", json=body, headers=headers),
        nobody.put("/admin/v1/budgets", json=body | {"tenant": "acme"}, headers=headers),
        nobody.delete(f"/admin/v1/budgets/{own}", headers=headers),
    ):
        assert code(answer) == (403, "role_not_allowed")
    of_project = nobody.put("/admin/v1/budgets", json=body | {"project": "default"}, headers=headers)
    assert of_project.status_code == 200
    assert nobody.delete(f"/admin/v1/budgets/{of_project.json()['budget']}", headers=headers).is_success


@pytest.mark.parametrize(
    "reason", ["", "x" * 501, "a\tb", "key sk-" + "a" * 43, "sk-admin-" + "b" * 43, b"\xff\xfe"]
)
def test_a_reason_that_is_none_is_refused_and_nothing_changes(admin: TestClient, reason: str | bytes):
    raw = reason if isinstance(reason, bytes) else reason.encode()
    answer = admin.post("/admin/v1/tenants", json={"name": "acme"}, headers=[(b"x-reason", raw)])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Reason")
    assert admin.get("/admin/v1/tenants").json()["data"] == []
