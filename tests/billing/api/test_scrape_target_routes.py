"""Which engines Prometheus is told of, and how it reaches them."""

from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from tests.billing.api.conftest import SERVICE_KEY
from tests.billing.engine_server import ScriptedEngine, register


def listed(nobody: TestClient) -> list[dict[str, Any]]:
    answer = nobody.get("/admin/v1/scrape-targets", headers={"authorization": f"Bearer {SERVICE_KEY}"})
    assert answer.status_code == 200, answer.text
    groups: list[dict[str, Any]] = answer.json()
    return groups


def engine_at(url: str) -> ScriptedEngine:
    return ScriptedEngine(url=url)


@pytest.mark.parametrize(
    ("url", "target", "more"),
    [
        ("http://10.0.0.5:8100", "10.0.0.5:8100", {}),
        ("http://10.0.0.5:8100/v1", "10.0.0.5:8100", {}),
        ("http://engine.internal", "engine.internal:80", {}),
        ("https://engine.internal", "engine.internal:443", {"__scheme__": "https"}),
        (
            "https://[fd00::2]:8443/m1",
            "[fd00::2]:8443",
            {"__scheme__": "https", "__metrics_path__": "/m1/metrics"},
        ),
    ],
)
def test_an_engine_is_a_target_at_its_own_address(
    nobody: TestClient, raw_redis: redis.Redis, url: str, target: str, more: dict[str, str]
) -> None:
    register(raw_redis, engine_at(url), "i1")
    labels = {"job": "engine", "engine": "i1", "model": "m1", "pool": "m1"} | more
    assert listed(nobody) == [{"targets": [target], "labels": labels}]


def test_only_engines_that_run_and_have_a_page_are_targets_and_one_server_is_one(
    nobody: TestClient, raw_redis: redis.Redis
) -> None:
    register(raw_redis, engine_at("http://10.0.0.5:1"), "draining", status="draining")
    register(raw_redis, engine_at("http://10.0.0.5:2"), "starting", status="starting")
    register(raw_redis, engine_at("http://10.0.0.5:3"), "down", status="down")
    register(raw_redis, engine_at("http://10.0.0.5:4"), "lapsed", lease_until_ms=1)
    register(raw_redis, engine_at("http://10.0.0.5:5"), "without", metrics=False)
    register(raw_redis, engine_at("http://10.0.0.5:6"), "one")
    register(raw_redis, engine_at("http://10.0.0.5:6/v1"), "one-again", model="m2")
    assert [(group["labels"]["engine"], group["targets"]) for group in listed(nobody)] == [
        ("draining", ["10.0.0.5:1"]),
        ("one", ["10.0.0.5:6"]),
    ]
