"""What the admin API does while a store is away: it says so, in the one shape of an error, and loses no
change.
"""

import json
from collections.abc import Iterator

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine

from billing.api.app import build_app
from billing.settings import BillingSettings
from billing.wire import redis_keys
from tests.billing.api.conftest import ADMIN_KEY
from tests.fixtures.valkey import ValkeyProcess, free_port

HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture
def own_redis(own_valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with redis.Redis(port=own_valkey.port, retry=None) as client:
        yield client


def test_a_change_without_redis_is_saved_and_said_to_be_pending(database: Engine, own_valkey, own_redis):
    client = TestClient(build_app(BillingSettings(admin_key=ADMIN_KEY), database, own_redis), headers=HEADERS)
    client.post("/admin/v1/tenants", json={"name": "acme"})
    own_valkey.kill()
    answer = client.patch("/admin/v1/tenants/acme", json={"status": "suspended"})
    assert (answer.status_code, answer.headers["x-taas-effect"]) == (200, "pending")
    health = client.get("/healthz")
    assert (health.status_code, health.json()["redis"], health.json()["projection_pending"]) == (
        503,
        "down",
        1,
    )
    for method, path in (("POST", "requests/req_1/stop"), ("GET", "instances"), ("GET", "pools")):
        refused = client.request(method, f"/admin/v1/{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "redis_unavailable")
    client.post("/admin/v1/models", json={"name": "m", "context_tokens": 100})
    # What a pool has is in SQL; what of it is there is not known.
    pool = client.patch("/admin/v1/pools/m", json={"instances": 3}).json()
    assert (pool["instances"], pool["registered"], pool["ready"]) == (3, None, None)
    own_valkey.start()
    # The next change takes the one before along.
    answer = client.post("/admin/v1/tenants", json={"name": "other"})
    assert answer.headers["x-taas-effect"] == "now"
    tenant = client.get("/admin/v1/tenants/acme").json()["tenant"]
    assert json.loads(own_redis.get(redis_keys.tenant(tenant)))["status"] == "suspended"


def test_without_the_database_every_route_says_so(raw_redis):
    engine = create_engine(
        f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none", connect_args={"connect_timeout": 2}
    )
    client = TestClient(
        build_app(BillingSettings(admin_key=ADMIN_KEY), engine, raw_redis),
        headers=HEADERS,
        raise_server_exceptions=False,
    )
    for method, path, body in (
        ("GET", "tenants", None),
        ("POST", "tenants", {"name": "x"}),
        ("GET", "usage", None),
        ("GET", "audit", None),
    ):
        refused = client.request(method, f"/admin/v1/{path}", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
    health = client.get("/healthz")
    assert (health.status_code, health.json()["database"], health.json()["redis"]) == (503, "down", "ok")
    engine.dispose()


def test_a_bug_is_a_500_in_shape_that_tells_nothing(database: Engine, raw_redis):
    app = build_app(BillingSettings(admin_key=ADMIN_KEY), database, raw_redis)

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("canary")

    answer = TestClient(app, headers=HEADERS, raise_server_exceptions=False).get("/boom")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"].startswith("adm_")
    assert "canary" not in answer.text
