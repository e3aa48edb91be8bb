"""What an operator can do to the catalogue over the admin API, and that gateways see it by the time the
answer is there.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text, update

from billing.catalogue.api_keys import hash_of
from billing.catalogue.price_book import join_recording
from billing.contracts import lifecycle
from billing.schema.budgets import budget_spent
from billing.schema.catalogue import api_key
from billing.wire import redis_keys
from billing.wire.limits import NAMES
from tests.billing.contracts.selling import POOL, T0, furnish, terms
from tests.fixtures.gateway import wait_until

Make = Callable[..., dict[str, Any]]


def entry_of(client: redis.Redis, key: str) -> Any:
    raw = client.get(key)
    return None if raw is None else json.loads(raw)


def test_a_created_tenant_is_in_redis_when_the_answer_comes(admin: TestClient, raw_redis):
    answer = admin.post("/admin/v1/tenants", json={"name": "acme"})
    assert answer.status_code == 201
    assert answer.headers["x-taas-effect"] == "now"
    assert answer.headers["x-request-id"].startswith("adm_")
    assert entry_of(raw_redis, redis_keys.tenant(answer.json()["tenant"]))["name"] == "acme"


def test_a_tenant_is_found_by_id_and_by_name(admin: TestClient, made: Make):
    tenant = made("tenants", name="org/acme", kind="internal")
    for named in ("org/acme", "org%2Facme", tenant["tenant"]):
        assert admin.get(f"/admin/v1/tenants/{named}").json() == tenant
    assert admin.get("/admin/v1/tenants").json()["data"] == [tenant]


def test_each_tenant_has_the_project_default(admin: TestClient, made: Make):
    made("tenants", name="acme")
    made("tenants", name="other")
    made("projects", tenant="acme", name="search")
    named = admin.get("/admin/v1/projects", params={"tenant": "acme"}).json()["data"]
    assert [project["name"] for project in named] == ["default", "search"]
    assert len(admin.get("/admin/v1/projects").json()["data"]) == 3


def test_a_key_is_shown_once_and_works_at_once(admin: TestClient, made: Make, raw_redis):
    tenant = made("tenants", name="acme")
    answer = admin.post("/admin/v1/keys", json={"tenant": "acme", "name": "laptop"})
    key = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert key["key"].startswith("sk-")
    assert key["display"] == f"sk-…{key['key'][-4:]}"
    assert entry_of(raw_redis, redis_keys.key_of_api_key(hash_of(key["key"])))["tenant"] == tenant["tenant"]
    (listed,) = admin.get("/admin/v1/keys", params={"tenant": "acme"}).json()["data"]
    assert listed == {name: value for name, value in key.items() if name != "key"}


def test_a_revoked_key_is_gone_from_redis_when_the_answer_comes(admin: TestClient, made: Make, raw_redis):
    made("tenants", name="acme")
    key = made("keys", tenant="acme")
    answer = admin.delete(f"/admin/v1/keys/{key['key_id']}")
    assert (answer.status_code, answer.json()["status"]) == (200, "revoked")
    assert entry_of(raw_redis, redis_keys.key_of_api_key(hash_of(key["key"]))) is None
    assert admin.delete(f"/admin/v1/keys/{key['key_id']}").status_code == 200


def test_a_key_of_another_tenants_project_is_not_made(admin: TestClient, made: Make):
    made("tenants", name="acme")
    made("tenants", name="other")
    project = made("projects", tenant="other", name="theirs")
    answer = admin.post("/admin/v1/keys", json={"tenant": "acme", "project": project["project"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "project")


def test_a_key_may_expire_but_not_in_the_past(admin: TestClient, made: Make):
    made("tenants", name="acme")
    assert (
        made("keys", tenant="acme", expires_at_ms="2999-01-01T00:00:00Z")["expires_at_ms"]
        == 32_472_144_000_000
    )
    answer = admin.post("/admin/v1/keys", json={"tenant": "acme", "expires_at_ms": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_at_ms")


def test_suspending_reaches_redis_and_can_stop_what_is_open(admin: TestClient, made: Make, raw_redis):
    tenant = made("tenants", name="acme")["tenant"]
    answer = admin.patch("/admin/v1/tenants/acme", json={"status": "suspended", "stop_streams": True})
    assert answer.json()["status"] == "suspended"
    assert entry_of(raw_redis, redis_keys.tenant(tenant))["status"] == "suspended"
    announced = [
        (fields[b"kind"], fields[b"id"].decode()) for _, fields in raw_redis.xrange(redis_keys.CHANGES)
    ]
    assert announced[-2:] == [(b"tenant", tenant), (b"stop", f"tenant:{tenant}")]
    resumed = admin.patch("/admin/v1/tenants/acme", json={"status": "active"}).json()
    assert resumed["status"] == "active"


def test_streams_are_stopped_only_with_a_suspension(admin: TestClient, made: Make):
    made("tenants", name="acme")
    answer = admin.patch("/admin/v1/tenants/acme", json={"status": "active", "stop_streams": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stop_streams")


def test_the_policy_for_a_lost_redis_is_kept(admin: TestClient, made: Make, raw_redis):
    tenant = made("tenants", name="acme")["tenant"]
    lease = {"policy": "local_lease", "requests": 10, "units": 5000}
    assert (
        admin.patch("/admin/v1/tenants/acme", json={"redis_down": lease, "on_demand": False}).status_code
        == 200
    )
    entry = entry_of(raw_redis, redis_keys.tenant(tenant))
    assert (entry["redis_down"], entry["on_demand"]) == (lease, False)


def test_a_limit_set_in_two_steps_keeps_both(admin: TestClient, made: Make, raw_redis):
    tenant = made("tenants", name="acme")["tenant"]
    admin.put("/admin/v1/limits", json={"tenant": "acme", "requests_per_minute": 60})
    answer = admin.put("/admin/v1/limits", json={"tenant": tenant, "concurrency": 4})
    assert (answer.json()["requests_per_minute"], answer.json()["concurrency"]) == (60, 4)
    admin.put("/admin/v1/limits", json={"tenant": "acme", "requests_per_minute": None})
    assert entry_of(raw_redis, redis_keys.tenant(tenant))["limits"] == [
        {"model": "*"} | dict.fromkeys(NAMES) | {"concurrency": 4}
    ]


def test_limits_of_keys_stand_beside_their_tenants(admin: TestClient, made: Make, raw_redis):
    made("tenants", name="acme")
    made("tenants", name="other")
    key = made("keys", tenant="acme")
    made("models", name="m", context_tokens=100)
    answer = admin.put("/admin/v1/limits", json={"key_id": key["key_id"], "model": "m", "concurrency": 1})
    assert answer.status_code == 200
    assert len(admin.get("/admin/v1/limits", params={"tenant": "acme"}).json()["data"]) == 1
    assert admin.get("/admin/v1/limits", params={"tenant": "other"}).json()["data"] == []
    wrong = admin.put("/admin/v1/limits", json={"tenant": "other", "key_id": key["key_id"], "concurrency": 1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "key_id")
    assert admin.delete("/admin/v1/limits", params={"key_id": key["key_id"], "model": "m"}).status_code == 200
    assert entry_of(raw_redis, redis_keys.key_of_api_key(hash_of(key["key"])))["limits"] == []
    assert admin.delete("/admin/v1/limits", params={"key_id": key["key_id"], "model": "m"}).status_code == 404


def test_a_model_changes_and_its_weights_are_versioned(admin: TestClient, made: Make, raw_redis):
    model = made(
        "models", name="org/m-1", context_tokens=8192, weights={"w_in_mu": 1, "w_cached_mu": 1, "w_out_mu": 1}
    )
    assert (model["pool"], model["cell"], model["engine_model"]) == ("org/m-1", "org/m-1", "org/m-1")
    weights = {"w_in_mu": 2, "w_cached_mu": 1, "w_out_mu": 3}
    changed = admin.patch("/admin/v1/models/org/m-1", json={"weights": weights, "routes": ["chat"]}).json()
    assert changed["weights"] == {"version": 2, **weights}
    assert (
        admin.patch("/admin/v1/models/org/m-1", json={"weights": weights}).json()["weights"]["version"] == 2
    )
    assert json.loads(raw_redis.hget(redis_keys.MODELS, "org/m-1"))["routes"] == ["chat"]
    assert admin.get("/admin/v1/models/org/m-1").json() == admin.get("/admin/v1/models").json()["data"][0]


def test_a_models_audience_is_what_was_said(admin: TestClient, made: Make, raw_redis):
    acme = made("tenants", name="acme")["tenant"]
    made("models", name="shared", context_tokens=10, visible=["acme"])
    made("models", name="private", context_tokens=10, owner="acme")
    made("models", name="inside", context_tokens=10, visible="internal")
    entries = {name.decode(): json.loads(raw) for name, raw in raw_redis.hgetall(redis_keys.MODELS).items()}
    assert entries["shared"]["visible"] == [acme]
    assert (entries["private"]["owner"], entries["private"]["visible"]) == (acme, [acme])
    assert entries["inside"]["visible"] == "internal"
    widened = admin.patch("/admin/v1/models/private", json={"visible": "internal"})
    assert (widened.status_code, widened.json()["error"]["param"]) == (400, "visible")


def test_a_price_is_set_and_listed_as_it_was_said(admin: TestClient, made: Make):
    made("models", name="m", context_tokens=10)
    price = made("prices", model="m", input="0.15", output="0.6")
    assert (price["input"], price["cached_input"], price["output"]) == ("0.15", "0.15", "0.60")
    later = made("prices", model="m", input="1", cached_input="0.1", output="2", **{"from": "2999-01-01"})
    assert (price.pop("replaces"), later.pop("replaces")) == (None, None)
    assert admin.get("/admin/v1/prices", params={"model": "m"}).json()["data"] == [later, price]


def test_a_model_is_for_sale_with_its_first_price_and_what_is_free_says_so(
    admin: TestClient, made: Make, raw_redis
):
    made("models", name="m", context_tokens=10)
    assert admin.get("/admin/v1/models/m").json()["for_sale_from_ms"] is None
    unsaid = admin.post("/admin/v1/prices", json={"model": "m", "output": "1"})
    assert (unsaid.status_code, unsaid.json()["error"]["param"]) == (400, "input")
    both = admin.post("/admin/v1/prices", json={"model": "m", "free": True, "input": "1"})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "free")
    before_s, _ = raw_redis.time()
    price = made("prices", model="m", free=True)
    assert (price["input"], price["output"]) == ("0.00", "0.00")
    # By Redis's clock, as requests are.
    assert before_s * 1000 <= price["from_ms"] <= (raw_redis.time()[0] + 1) * 1000
    assert admin.get("/admin/v1/models/m").json()["for_sale_from_ms"] == price["from_ms"]


def test_a_future_price_is_withdrawn_and_a_change_by_more_than_ten_times_is_asked_about(
    admin: TestClient, made: Make
):
    made("models", name="m", context_tokens=10)
    now = made("prices", model="m", input="1", output="1")
    slip = {"model": "m", "input": "100", "output": "1", "from": "2999-01-01"}
    asked = admin.post("/admin/v1/prices", json=slip)
    assert (asked.status_code, asked.json()["error"]["code"]) == (409, "price_changes_much")
    meant = made("prices", **slip, confirmed=True)
    assert admin.delete(f"/admin/v1/prices/{meant['price_id']}").status_code == 200
    assert admin.delete(f"/admin/v1/prices/{meant['price_id']}").status_code == 404
    assert admin.delete(f"/admin/v1/prices/{now['price_id']}").json()["error"]["code"] == "already_priced"


def test_a_price_of_a_class_is_given_or_taken_off_the_price_for_all(admin: TestClient, made: Make):
    made("models", name="m", context_tokens=10)
    early = admin.post("/admin/v1/prices", json={"model": "m", "class": "flex", "discount": 50})
    assert early.json()["error"]["param"] == "discount"  # of what?
    made("prices", model="m", input="0.15", cached_input="0.01", output="0.6")
    flex = made("prices", model="m", discount=25, **{"class": "flex"})
    assert (flex["class"], flex["contract"]) == ("flex", None)
    assert [flex[kind] for kind in ("input", "cached_input", "output")] == ["0.1125", "0.0075", "0.45"]
    assert (
        made("prices", model="m", input="0.1", cached_input="0.1", output="0.9", **{"class": "batch"})[
            "class"
        ]
        == "batch"
    )
    for wrong in (
        {"discount": 10},
        {"discount": 10, "class": "flex", "input": "1"},
        {"discount": 0, "class": "flex"},
        {"input": "1", "output": "1", "class": "best"},
        {"input": "1", "output": "1", "contract": "con_" + "0" * 24},
    ):
        assert admin.post("/admin/v1/prices", json={"model": "m", **wrong}).status_code in {400, 404}, wrong


def test_a_model_that_a_contract_stands_on_is_not_retired_nor_its_tenant_archived(
    admin: TestClient, made: Make, database: Engine
):
    with database.begin() as connection:
        shop = furnish(connection)
        made_ = lifecycle.draft(
            connection, terms(shop.tenants["acme"], 10, until_ms=T0 + 3_000_000_000_000), now_ms=T0
        )
        lifecycle.sign(connection, made_.contract_id, now_ms=T0)
    for path, status in ((f"models/{POOL}", "retired"), ("tenants/acme", "archived")):
        refused = admin.patch(f"/admin/v1/{path}", json={"status": status})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "under_contract")
        assert made_.contract_id in refused.json()["error"]["message"]
    assert admin.patch("/admin/v1/tenants/bolt", json={"status": "archived"}).status_code == 200


def test_a_suspended_tenant_signs_nothing(admin: TestClient, database: Engine):
    with database.begin() as connection:
        furnish(connection)
    admin.patch("/admin/v1/tenants/acme", json={"status": "suspended"})
    body = {"tenant": "acme", "pool": POOL, "units": 10, "until": "+1y", "notice_days": 1}
    refused = admin.post("/admin/v1/contracts", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "tenant_not_active")
    assert admin.get("/admin/v1/contracts").json()["data"] == []


def test_a_tenant_and_a_project_are_renamed_and_archived(admin: TestClient, made: Make):
    tenant = made("tenants", name="acme")["tenant"]
    made("tenants", name="other")
    made("projects", tenant="acme", name="search")
    assert admin.post("/admin/v1/tenants", json={"name": "-x"}).status_code == 400
    assert admin.patch("/admin/v1/tenants/acme", json={"name": "other"}).status_code == 409
    assert admin.patch("/admin/v1/tenants/acme", json={"name": "ace"}).json()["tenant"] == tenant
    assert (
        admin.patch("/admin/v1/projects/search", json={"tenant": "ace", "name": "default"}).status_code == 409
    )
    changed = admin.patch(
        "/admin/v1/projects/search", json={"tenant": "ace", "name": "find", "status": "archived"}
    ).json()
    assert (changed["name"], changed["status"]) == ("find", "archived")
    assert [each["name"] for each in admin.get("/admin/v1/projects?tenant=ace").json()["data"]] == ["default"]
    assert len(admin.get("/admin/v1/projects?tenant=ace&archived=true").json()["data"]) == 2
    admin.patch("/admin/v1/tenants/ace", json={"status": "archived"})
    assert [each["name"] for each in admin.get("/admin/v1/tenants").json()["data"]] == ["other"]
    assert [each["name"] for each in admin.get("/admin/v1/tenants?archived=true").json()["data"]] == [
        "ace",
        "other",
    ]


def test_a_key_is_changed_and_rotated_with_its_limits(admin: TestClient, made: Make):
    made("tenants", name="acme")
    made("models", name="m", context_tokens=10)
    key = made("keys", tenant="acme", name="ci", models=["m"])
    path = f"/admin/v1/keys/{key['key_id']}"
    assert admin.post("/admin/v1/keys", json={"tenant": "acme", "models": ["none"]}).status_code == 404
    admin.put("/admin/v1/limits", json={"key_id": key["key_id"], "concurrency": 3})
    assert admin.patch(path, json={"name": "bot", "expires_at_ms": "2999-01-01"}).json()["name"] == "bot"
    rotated = admin.post(f"{path}/rotate", json={"overlap_seconds": 3600}).json()
    assert rotated["key"].startswith("sk-")
    assert (rotated["name"], rotated["models"], rotated["project"]) == ("bot", ["m"], key["project"])
    assert rotated["expires_at_ms"] == 32_472_144_000_000
    assert rotated["old"]["expires_at_ms"] < rotated["created_ms"] + 3_700_000
    (limit,) = admin.get("/admin/v1/limits", params={"key_id": rotated["key_id"]}).json()["data"]
    assert limit["concurrency"] == 3
    lifted = admin.patch(path, json={"models": None, "expires_at_ms": None}).json()
    assert (lifted["models"], lifted["expires_at_ms"], lifted["last_used_ms"]) == (None, None, None)
    admin.delete(path)
    assert admin.patch(path, json={"name": "x"}).json()["error"]["code"] == "key_revoked"


def test_a_rotated_key_goes_on_with_its_budgets_and_what_was_spent_of_them(
    admin: TestClient, made: Make, database: Engine
):
    """Else a key without anything left would be as new after each rotation."""
    made("tenants", name="acme")
    key = made("keys", tenant="acme")["key_id"]
    raised = {"usd": "0.5", "until": "2999-01-01T00:00:00Z"}
    budget = admin.put(
        "/admin/v1/budgets", json={"key_id": key, "usd": "1.00", "per": "day", "raised": raised}
    ).json()
    alert = {"percent": 80, "url": "https://hooks.example/budgets"}
    admin.put(f"/admin/v1/budgets/{budget['budget']}/alerts", json=alert)
    with database.begin() as connection:
        connection.execute(update(budget_spent).values(amount_picousd=9 * 10**11))
    new = admin.post(f"/admin/v1/keys/{key}/rotate", json={}).json()["key_id"]
    (kept,) = admin.get("/admin/v1/budgets", params={"key_id": new}).json()["data"]
    for name in ("budget", "key_id", "usd", "raised", "per", "from_ms", "until_ms"):
        assert kept[name] == budget[name], name
    assert (kept["spent"], kept["left"]) == ("0.90", "0.60")
    assert [(each["percent"], each["url"]) for each in kept["alerts"]] == [(80, alert["url"])]
    again = admin.put("/admin/v1/budgets", json={"key_id": new, "usd": "2.00", "per": "day"}).json()
    assert (again["budget"], again["usd"]) == (budget["budget"], "2.00")
    (shown,) = admin.get(f"/admin/v1/keys/{new}/usage").json()["budgets"]
    assert (shown["of"], shown["left"]) == ("key", "1.10")


def test_a_key_that_has_ended_is_not_rotated(admin: TestClient, made: Make, database: Engine):
    made("tenants", name="acme")
    key = made("keys", tenant="acme")["key_id"]
    with database.begin() as connection:
        connection.execute(update(api_key).values(expires_at_ms=1))
    answer = admin.post(f"/admin/v1/keys/{key}/rotate", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_expired")
    admin.delete(f"/admin/v1/keys/{key}")
    answer = admin.post(f"/admin/v1/keys/{key}/rotate", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_revoked")


@pytest.mark.parametrize(
    "text", ["-1", "1e3", "0.1234567", "NaN", "", "1,5", "١", " 1", "0x1", "99999999999"]
)
def test_fault_21_a_price_that_is_not_one_is_refused(admin: TestClient, made: Make, text: str):
    made("models", name="m", context_tokens=10)
    answer = admin.post("/admin/v1/prices", json={"model": "m", "input": text, "output": "1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


@pytest.mark.parametrize(
    ("noun", "body"),
    [
        ("tenants", {"name": "acme"}),
        ("projects", {"tenant": "acme", "name": "search"}),
        ("models", {"name": "m", "context_tokens": 10}),
    ],
)
def test_a_second_one_of_the_same_name_is_a_conflict(
    admin: TestClient, made: Make, noun: str, body: dict[str, Any]
):
    if noun != "tenants":
        made("tenants", name="acme")
    made(noun, **body)
    answer = admin.post(f"/admin/v1/{noun}", json=body)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "already_exists"
    assert "already" in answer.json()["error"]["message"]


def test_a_stop_is_announced_to_the_gateways(admin: TestClient, raw_redis):
    assert admin.post("/admin/v1/requests/req_none/stop").status_code == 404
    raw_redis.sadd(redis_keys.CELLS, "c")
    raw_redis.hset(redis_keys.reservation("c", "req_1"), "state", "waiting")
    assert admin.post("/admin/v1/requests/req_1/stop").status_code == 202
    ((_, fields),) = raw_redis.xrevrange(redis_keys.CHANGES, count=1)
    assert fields == {b"kind": b"stop", b"id": b"req_1"}


def test_usage_of_nothing_is_an_empty_report(admin: TestClient, made: Make):
    tenant = made("tenants", name="acme")["tenant"]
    report = admin.get(
        "/admin/v1/usage", params={"tenant": "acme", "by": "model,hour", "from": "2026-01-01"}
    ).json()
    assert (report["tenant"], report["lines"], report["total"]["amount"]) == (tenant, [], "0.00")
    assert admin.get("/admin/v1/usage", params={"by": "colour"}).json()["error"]["param"] == "by"


def test_an_audit_of_nothing_has_no_residual(admin: TestClient):
    assert admin.get("/admin/v1/audit").json()["residual_tokens"] == 0


def test_health_is_told_to_everybody(nobody: TestClient):
    answer = nobody.get("/healthz")
    assert (answer.status_code, answer.json()["database"], answer.json()["redis"]) == (200, "ok", "ok")


def test_the_document_of_the_api_names_its_routes(admin: TestClient):
    paths = admin.get("/openapi.json").json()["paths"]
    assert "/admin/v1/keys/{key_id}" in paths
    assert admin.get("/docs").status_code == 200


def test_two_lists_of_prices_at_once_are_taken_one_after_the_other(
    admin: TestClient, made: Make, database: Engine
):
    """Both are tried on what was recorded, while something is being recorded."""
    waiting = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
    bodies = []
    for name in ("m1", "m2"):
        made("models", name=name, context_tokens=4096)
        bodies.append({"prices": [{"model": name, "input": "1", "output": "2"}], "dry_run": True})
    with ThreadPoolExecutor(2) as callers, database.connect() as recording:
        join_recording(recording)
        answers = [callers.submit(admin.post, "/admin/v1/prices/list", json=body) for body in bodies]
        wait_until(lambda: recording.execute(waiting).scalar_one() == 2, "both wait")
        recording.rollback()
        assert [answer.result().status_code for answer in answers] == [201, 201]
