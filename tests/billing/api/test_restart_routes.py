"""Ordering a worker to start its engine again: who can be ordered, and what the worker reads."""

import json
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from billing.wire import redis_keys
from tests.fixtures.gateway import Catalogue


def order(admin: TestClient, instance: str, **body: Any) -> Any:
    return admin.post(f"/admin/v1/instances/{instance}/restart", json=body)


def test_the_order_names_the_engine_that_runs_now(admin: TestClient, raw_redis: redis.Redis) -> None:
    Catalogue(raw_redis).instance("http://127.0.0.1:1", None, name="org/w", epoch="e7")
    answer = order(admin, "org/w", drain_seconds=5)
    assert (answer.status_code, answer.json()["epoch"]) == (202, "e7"), answer.text
    written = raw_redis.hget(redis_keys.RESTARTS, "org/w")
    assert json.loads(written or b"") == {"epoch": "e7", "drain_s": 5}


@pytest.mark.parametrize("status", ["starting", "draining", "down"])
def test_one_that_is_not_ready_is_not_ordered(admin: TestClient, raw_redis: redis.Redis, status: str) -> None:
    Catalogue(raw_redis).instance("http://127.0.0.1:1", None, name="w", status=status)
    answer = order(admin, "w")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_ready")
    assert raw_redis.hlen(redis_keys.RESTARTS) == 0


def test_one_that_no_worker_has_is_not_ordered(admin: TestClient, raw_redis: redis.Redis) -> None:
    assert order(admin, "nobody").status_code == 404
    admin.post("/admin/v1/models", json={"name": "m", "context_tokens": 100})
    url = "http://127.0.0.1:1"
    added = admin.post("/admin/v1/instances", json={"model": "m", "url": url, "instance": "i", "force": True})
    assert added.status_code == 201, added.text
    answer = order(admin, "i")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "added_by_hand")
    assert raw_redis.hlen(redis_keys.RESTARTS) == 0
