"""A POST sent again under its `Idempotency-Key` gets the first answer and changes nothing, also where
several are sent at once.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from billing.api.app import build_app
from billing.settings import BillingSettings
from tests.billing.api.conftest import ADMIN_KEY, SERVICE_KEY


def post(client: TestClient, noun: str, key: str, /, **body: Any) -> Any:
    return client.post(f"/admin/v1/{noun}", json=body, headers={"idempotency-key": key})


def names(admin: TestClient) -> list[str]:
    return [row["name"] for row in admin.get("/admin/v1/tenants").json()["data"]]


def test_fault_22_the_same_again_gets_the_first_answer_and_changes_nothing(admin: TestClient):
    first = post(admin, "tenants", "k-1", name="acme")
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    for _ in range(2):
        again = post(admin, "tenants", "k-1", name="acme")
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert names(admin) == ["acme"]


def test_another_request_under_the_same_key_is_refused(admin: TestClient):
    post(admin, "tenants", "k-1", name="acme")
    for noun, body in (("tenants", {"name": "bolt"}), ("projects", {"name": "acme", "tenant": "acme"})):
        answer = post(admin, noun, "k-1", **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_reused")
    assert names(admin) == ["acme"]


def test_what_was_refused_leaves_its_key_free(admin: TestClient):
    assert post(admin, "projects", "k-1", tenant="acme", name="x").status_code == 404
    assert post(admin, "tenants", "k-2", name="acme").status_code == 201
    assert post(admin, "projects", "k-1", tenant="acme", name="x").status_code == 201


def test_what_changes_nothing_is_answered_the_same(admin: TestClient):
    post(admin, "tenants", "k-0", name="acme")
    admin.post("/admin/v1/models", json={"name": "m", "context_tokens": 10})
    body = {"model": "m", "from": 0, "dry_run": True}
    first = post(admin, "prices/backfill", "k-1", **body)
    again = post(admin, "prices/backfill", "k-1", **body)
    assert (first.status_code, first.json()) == (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"


def test_a_secret_is_answered_once_and_stored_nowhere(admin: TestClient, database: Engine):
    post(admin, "tenants", "k-0", name="acme")
    made = post(admin, "keys", "k-1", tenant="acme").json()
    assert post(admin, "keys", "k-1", tenant="acme").json() == {**made, "key": None}
    turned = post(admin, f"keys/{made['key_id']}/rotate", "k-2").json()
    assert post(admin, f"keys/{made['key_id']}/rotate", "k-2").json() == {**turned, "key": None}
    with database.connect() as connection:
        stored = str(
            connection.execute(text("select convert_from(answer, 'UTF8') from idempotent_request")).all()
        )
    assert made["key_id"] in stored
    for secret in (made["key"], turned["key"]):
        assert len(secret) == 46
        assert secret not in stored


@pytest.mark.parametrize("key", ["", "a b", "ä", "a" * 256, "a\x00"])
def test_a_key_that_is_none_is_refused(admin: TestClient, key: str):
    headers = [(b"idempotency-key", key.encode())]
    answer = admin.post("/admin/v1/tenants", json={"name": "acme"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert names(admin) == []


def test_two_keys_are_refused(admin: TestClient):
    headers = [("idempotency-key", "a"), ("idempotency-key", "b")]
    assert admin.post("/admin/v1/tenants", json={"name": "acme"}, headers=headers).status_code == 400


def test_a_key_is_its_callers(admin: TestClient, nobody: TestClient):
    assert post(admin, "tenants", "k-1", name="acme").status_code == 201
    for secret, status in ((None, 401), (SERVICE_KEY, 403)):
        headers = {"idempotency-key": "k-1"} | (
            {} if secret is None else {"authorization": f"Bearer {secret}"}
        )
        answer = nobody.post("/admin/v1/tenants", json={"name": "acme"}, headers=headers)
        assert answer.status_code == status


def test_other_methods_take_no_key(admin: TestClient):
    post(admin, "tenants", "k-1", name="acme")
    headers = {"idempotency-key": "k-1"}
    assert admin.patch("/admin/v1/tenants/acme", json={"weight": 2}, headers=headers).json()["weight"] == 2
    assert admin.get("/admin/v1/tenants/acme", headers=headers).json()["weight"] == 2


def test_fault_22_many_at_once_at_two_processes_do_it_once(
    admin: TestClient, database: Engine, raw_redis: redis.Redis
):
    """The two apps share nothing but the stores, as two processes do."""
    post(admin, "tenants", "k-0", name="acme")
    other = build_app(BillingSettings(admin_key=ADMIN_KEY, service_key=SERVICE_KEY), database, raw_redis)
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with TestClient(other, headers=headers) as second, ThreadPoolExecutor(8) as threads:
        for round_ in range(5):
            asked = [
                threads.submit(post, (admin, second)[n % 2], "keys", f"k-{round_ + 1}", tenant="acme")
                for n in range(8)
            ]
            answers = [each.result() for each in asked]
            done = [each for each in answers if each.status_code == 201]
            assert len([each for each in done if "idempotent-replayed" not in each.headers]) == 1
            assert len({each.json()["key_id"] for each in done}) == 1
            rest = [each for each in answers if each.status_code != 201]
            assert {(each.status_code, each.json()["error"]["code"]) for each in rest} <= {
                (409, "idempotency_key_in_use")
            }
            assert (
                post(second, "keys", f"k-{round_ + 1}", tenant="acme").json()["key_id"]
                == done[0].json()["key_id"]
            )
    assert len(admin.get("/admin/v1/keys").json()["data"]) == 5
