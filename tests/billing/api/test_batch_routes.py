"""Batches as operators see and cancel them."""

import json

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, insert

from billing.schema.batches import batch

MEMBERS = {
    "batch", "dialect", "tenant", "tenant_name", "project", "key_id", "route", "model", "status", "lines",
    "tokens", "estimate_tokens", "errors", "created_ms", "expires_ms", "times",
}  # fmt: skip


def add(database: Engine, tenant: str, number: int, **columns: object) -> str:
    row = {
        "batch_id": f"batch_{number:016x}", "dialect": "openai", "tenant_id": tenant, "project": "default",
        "key_id": "key_1", "input_file": "file-1", "route": "chat", "status": "in_progress", "total": 3,
        "created_ms": number, "expires_ms": 10**15, "metadata": {"secret": "canary"},
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(batch).values(row | columns))
    return f"batch_{number:016x}"


@pytest.fixture
def tenants(admin: TestClient) -> list[str]:
    return [
        admin.post("/admin/v1/tenants", json={"name": name}).json()["tenant"] for name in ("acme", "bolt")
    ]


def test_batches_are_listed_newest_first_by_tenant_and_status(
    admin: TestClient, database: Engine, tenants: list[str]
) -> None:
    ids = [add(database, tenants[number % 2], number + 1) for number in range(3)]
    done = add(database, tenants[0], 9, status="completed", completed=3)
    shown = admin.get("/admin/v1/batches").json()["data"]
    assert [each["batch"] for each in shown] == [done, *ids[::-1]]
    assert set(shown[0]) == MEMBERS
    assert "canary" not in json.dumps(shown)
    of_bolt = admin.get("/admin/v1/batches", params={"tenant": "bolt"}).json()["data"]
    assert [(each["batch"], each["tenant_name"]) for each in of_bolt] == [(ids[1], "bolt")]
    completed = admin.get("/admin/v1/batches", params={"status": "completed"}).json()["data"]
    assert [each["batch"] for each in completed] == [done]
    first = admin.get("/admin/v1/batches", params={"limit": 1}).json()
    second = admin.get("/admin/v1/batches", params={"limit": 1, "after": first["next"]}).json()
    assert second["data"][0]["batch"] == ids[2]
    assert admin.get("/admin/v1/batches", params={"status": "nothing"}).status_code == 400


def test_a_batch_is_cancelled_once_and_not_after_its_end(
    admin: TestClient, database: Engine, tenants: list[str]
) -> None:
    running, over = add(database, tenants[0], 1), add(database, tenants[0], 2, status="completed")
    for _ in range(2):
        answer = admin.post(f"/admin/v1/batches/{running}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    assert "cancelling" in admin.get(f"/admin/v1/batches/{running}").json()["times"]
    refused = admin.post(f"/admin/v1/batches/{over}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "batch_not_cancellable")
    assert admin.get(f"/admin/v1/batches/batch_{'f' * 16}").status_code == 404
    assert admin.post(f"/admin/v1/batches/batch_{'f' * 16}/cancel").status_code == 404
    assert admin.get("/admin/v1/batches/nothing").status_code == 400
