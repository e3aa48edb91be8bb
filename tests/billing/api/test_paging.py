"""Lists come by pages: each row once, in a stable order, whatever the page's length; a mark that is none
is refused.
"""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from billing.wire import redis_keys
from tests.billing.api.test_batch_routes import add

Make = Callable[..., dict[str, Any]]
# Each list, and what tells its rows apart.
LISTS = {
    "tenants": "tenant", "projects": "project", "keys": "key_id", "limits": "tenant", "models": "name",
    "prices": "price_id", "pools": "pool", "instances": "instance", "calibrations": "calibration",
    "contracts": "contract", "reclaims": "reclaim", "budgets": "budget", "cost-prices": "price_id",
    "machines": "entry", "adapters": "model", "launches": "pool", "autoscaling": "pool", "batches": "batch",
    "admin-keys": "key_id", "audit-log": "entry",
}  # fmt: skip
FILTERS = {
    "tenants": [{"name": "CM"}, {"status": "suspended"}, {"kind": "internal"}, {"archived": "true"}],
    "projects": [{"tenant": "acme"}, {"name": "side"}],
    "keys": [{"tenant": "acme"}, {"tenant": "acme", "project": "default"},
             {"name": "ACME"}, {"status": "revoked"}, {"status": "active"}],
    "limits": [{"tenant": "acme"}, {"model": "m-2"}],
    "models": [{"name": "M-2"}, {"pool": "m-1"}, {"status": "retired"}],
    "prices": [{"model": "m-1"}],
    "pools": [{"name": "M-3"}],
    "instances": [{"model": "m-1"}, {"pool": "m-2"}, {"status": "ready"}],
    "calibrations": [{"pool": "m-1"}, {"model": "m-1"}],
    "contracts": [{"tenant": "acme"}, {"pool": "m-1"}, {"state": "draft"}, {"from": "2100-06-01",
    "until": "2101-01-01"}],
    "reclaims": [{"pool": "m-1"}, {"state": "planned"}],
    "budgets": [{"tenant": "acme"}, {"per": "day"}],
    "cost-prices": [{"model": "m-1"}],
    "machines": [{"pool": "m-1"}],
    "adapters": [{"model": "m-1"}],
    "launches": [{"model": "m-1"}],
    # One for each pool: `GET autoscaling/{pool}`.
    "autoscaling": [],
    "batches": [{"tenant": "acme"}, {"status": "completed"}],
    "admin-keys": [{"tenant": "acme"}, {"role": "auditor"}, {"status": "revoked"}, {"name": "JANE"}],
    "audit-log": [{"tenant": "acme"}, {"action": "KEYS"}, {"kind": "tenant"}, {"from": "2000-01-01", "actor":
    "root", "kind": "model"}],
}  # fmt: skip


@pytest.fixture
def some(made: Make, admin: TestClient, raw_redis: redis.Redis, database: Engine) -> None:
    """At least three of everything that is listed."""
    for name in ("acme", "bolt", "core", "Dune"):
        made("tenants", name=name, kind="internal" if name == "bolt" else "external")
        made("projects", tenant=name, name="aside")
        key = made("keys", tenant=name, name=f"{name}-ci")
        admin.put("/admin/v1/limits", json={"tenant": name, "concurrency": 1})
        admin.put("/admin/v1/limits", json={"key_id": key["key_id"], "concurrency": 1})
    admin.patch("/admin/v1/tenants/core", json={"status": "suspended"})
    admin.delete(f"/admin/v1/keys/{key['key_id']}")
    weights = {"w_in_mu": 1000, "w_cached_mu": 100, "w_out_mu": 4000}
    for name in ("m-1", "m-2", "m-3"):
        made("models", name=name, context_tokens=4096)
        for start in (4_102_444_800_000, 4_102_444_900_000):
            made("prices", model=name, input="1", output="1", **{"from": start})
        entry = {
            "instance": f"i-{name}", "model": name, "pool": name, "cell": name, "url": "http://127.0.0.1:1",
            "key": None, "epoch": "e", "status": "down" if name == "m-3" else "ready", "lease_until_ms": 0,
            "abort": True, "load": {"running": 0, "waiting": 0, "kv_usage": 0.0},
        }  # fmt: skip
        raw_redis.hset(redis_keys.INSTANCES, f"i-{name}", json.dumps(entry))
        admin.patch(f"/admin/v1/pools/{name}", json={"instances": 50})
        made("calibrations", pool=name, model=name, weights=weights, error="0.03", sequences=16,
        capacity_units_per_second="1000",
             tpot_target_ms=50, ttft_target_ms=1000, hardware="cpu", engine_version="0.32")  # fmt: skip
        start = "2102-01-01" if name == "m-3" else "2100-01-01"
        made("contracts", tenant="bolt" if name == "m-3" else "acme", pool=name, units=1, until="2103-01-01",
        notice_days=1, draft=name == "m-2",
             **{"from": start})  # fmt: skip
        reclaim = made("reclaims", pool=name, instances=1, use="idle", by="2099-01-01T00:00:00Z")
    admin.put("/admin/v1/limits", json={"tenant": "acme", "model": "m-2", "concurrency": 1})
    admin.post(f"/admin/v1/reclaims/{reclaim['reclaim']}/cancel")
    some_more(made, admin, database)
    made("models", name="old", context_tokens=4096)
    admin.patch("/admin/v1/models/old", json={"status": "retired"})


def some_more(made: Make, admin: TestClient, database: Engine) -> None:
    for number, per in enumerate(("day", "month", "total")):
        for tenant in ("acme", "bolt"):
            admin.put("/admin/v1/budgets", json={"tenant": tenant, "usd": "1", "per": per})
        name = f"m-{number + 1}"
        made("cost-prices", model=name, input="1", output="1", **{"from": "2100-01-01"})
        made("machines", pool=name, usd_per_hour="2")
        made("adapters", model=name, name="a", path="/srv/a", owner="acme")
        admin.put(f"/admin/v1/launches/{name}", json={"model": name, "instances": 1})
        admin.put(f"/admin/v1/autoscaling/{name}", json={"min": 0, "max": 4})
        owner = admin.get(f"/admin/v1/tenants/{'acme' if number else 'bolt'}").json()["tenant"]
        add(database, owner, number, status="in_progress" if number else "completed")
        made("admin-keys", role="auditor", name=f"jane-{number}")
        made("admin-keys", role="admin", tenant="acme" if number else "bolt")
    key = made("admin-keys", role="finance")["key_id"]
    admin.delete(f"/admin/v1/admin-keys/{key}")


def pages(admin: TestClient, noun: str, limit: int, **query: Any) -> Iterator[list[dict[str, Any]]]:
    asked = {**query, "limit": limit}
    while True:
        answer = admin.get(f"/admin/v1/{noun}", params=asked)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield page["data"]
        if page["next"] is None:
            return
        asked["after"] = page["next"]


def test_every_list_takes_pages_and_filters(api_document: dict[str, Any]):
    lists = {}
    for path, operations in api_document["paths"].items():
        asked = {each["name"] for each in operations.get("get", {}).get("parameters", ())}
        answer = operations.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        schema = answer.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        # Lists in OpenAI's form have its pages, and tests with its SDK.
        if path.startswith("/admin/v1/") and "next" in api_document["components"]["schemas"].get(
            schema, {}
        ).get("properties", {}):
            lists[path.removeprefix("/admin/v1/")] = asked
    assert set(LISTS) <= set(lists)
    for noun, asked in lists.items():
        assert asked >= {"limit", "after"}, noun
        # There is one row for each pool or month: `GET autoscaling/{pool}`, `GET books/{month}`.
        assert asked > {"limit", "after"} or noun in {"autoscaling", "books"}, noun


@pytest.mark.usefixtures("some")
def test_pages_of_any_length_hold_each_row_once_in_the_same_order(admin: TestClient):
    for noun in LISTS:
        check_pages(admin, noun)


def check_pages(admin: TestClient, noun: str) -> None:
    (whole,) = pages(admin, noun, 1000)
    assert len(whole) >= 3
    assert len({json.dumps(row) for row in whole}) == len(whole)
    for limit in (1, 2, len(whole) - 1, len(whole)):
        found = list(pages(admin, noun, limit))
        assert [row for page in found for row in page] == whole
        assert all(len(page) == limit for page in found[:-1])
        assert 0 < len(found[-1]) <= limit


@pytest.mark.usefixtures("some")
def test_each_filter_keeps_some_rows_and_pages_too(admin: TestClient):
    for noun in LISTS:
        check_filters(admin, noun)


def check_filters(admin: TestClient, noun: str) -> None:
    (whole,) = pages(admin, noun, 1000)
    for query in FILTERS[noun]:
        (kept,) = pages(admin, noun, 1000, **query)
        assert kept, query
        if query != {"archived": "true"}:
            assert len(kept) < len(whole), (noun, query)
            assert [row for row in whole if row in kept] == kept
        assert [row for page in pages(admin, noun, 1, **query) for row in page] == kept


def test_what_comes_and_goes_meanwhile_shifts_nothing(admin: TestClient, made: Make):
    for name in ("acme", "bolt", "core", "Dune"):
        made("tenants", name=name)
    first = admin.get("/admin/v1/tenants", params={"limit": 2}).json()
    assert [row["name"] for row in first["data"]] == ["Dune", "acme"]
    made("tenants", name="Aaa")
    admin.patch("/admin/v1/tenants/acme", json={"status": "archived"})
    rest = admin.get("/admin/v1/tenants", params={"limit": 2, "after": first["next"]}).json()
    assert [row["name"] for row in rest["data"]] == ["bolt", "core"]
    assert rest["next"] is None


def test_wildcards_in_a_name_filter_are_letters(admin: TestClient, made: Make):
    made("tenants", name="acme")
    for name in ("%", "_", "a%e", "\\"):
        assert admin.get("/admin/v1/tenants", params={"name": name}).json()["data"] == []


def mark(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "after",
    [
        "", "x", "ä", "=" * 8, "a" * 1025, mark(), mark("tenants"), mark("tenants", 1), mark("tenants", "a",
        "b"), mark("models", "acme"),
        mark("tenants", "a\x00"), mark("tenants", "\ud800"), mark("tenants", None), mark("tenants", ["a"]),
        mark("tenants", True), base64.urlsafe_b64encode(b"[" * 700).decode(),
        base64.urlsafe_b64encode(b"7").decode(), base64.urlsafe_b64encode(b"\xff\xff").decode(),
    ],
)  # fmt: skip
def test_a_mark_that_is_none_of_the_lists_is_refused(admin: TestClient, after: str):
    answer = admin.get("/admin/v1/tenants", params={"after": after})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


def test_a_number_that_no_column_holds_is_refused(admin: TestClient):
    answer = admin.get("/admin/v1/projects", params={"after": mark("projects", 2**70, "prj_1")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1.5", "9" * 400])
def test_a_page_has_a_cap(admin: TestClient, limit: str):
    answer = admin.get("/admin/v1/tenants", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
