"""Evidence of an instance: complete, signed, and refused rather than incomplete."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient

from billing.wire import redis_keys
from billing.wire.engine_kinds import VLLM
from billing.wire.evidence import RunningEngine, check, make_key, read_public_key
from billing.wire.instance_entry import InstanceEntry, InstanceStatus

Make = Callable[..., dict[str, Any]]
ADDRESS = "/admin/v1/instances/i1/evidence"


def redis_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
def running(made: Make, raw_redis: redis.Redis) -> RunningEngine:
    """An instance of a private model, as its worker says."""
    owner = made("tenants", name="acme")
    made("models", name="m", context_tokens=2048, owner=owner["tenant"])
    now_ms = redis_ms(raw_redis)
    entry = InstanceEntry(
        instance="i1",
        model="m",
        pool="m",
        cell="m",
        url="http://127.0.0.1:8100",
        key="secret-engine-key",
        epoch="e1",
        status=InstanceStatus.READY,
        lease_until_ms=now_ms + 60_000,
        adapters={"m:tuned": "m:tuned@1"},
    )
    raw_redis.hset(redis_keys.INSTANCES, "i1", entry.to_json())
    facts = RunningEngine(
        epoch="e1",
        engine=VLLM,
        engine_version="0.32.0",
        command=("python", "-m", "vllm"),
        os_user="60706",
        listening=("127.0.0.1:8100",),
        requests_logged=False,
        weights={"model.safetensors": "ab" * 32},
        started_ms=now_ms - 5_000,
        read_ms=now_ms,
        own_user=True,
    )
    raw_redis.hset(redis_keys.EVIDENCE, "i1", facts.to_json())
    return facts


def test_evidence_says_all_that_an_auditor_asks_for_and_is_signed(
    admin: TestClient, key_file: Path, running: RunningEngine
) -> None:
    answer = admin.get(ADDRESS)
    assert answer.status_code == 200
    document = answer.json()
    shown_key = admin.get("/admin/v1/evidence-key").json()
    assert document["key"] == shown_key["key"]
    assert check(document, read_public_key(shown_key["public_key"])) == []
    said = document["evidence"]
    assert said["weights"] == {"sha256": dict(running.weights), "adapters": {"m:tuned": "m:tuned@1"}}
    assert said["process"] == {
        "engine": "vllm",
        "engine_version": "0.32.0",
        "command": list(running.command),
        "os_user": running.os_user,
        "own_user": True,
        "listening": list(running.listening),
    }
    assert said["logging"] == {"requests_logged": False, "takes_batches": False}
    assert said["callers"]["visible_to"] == [said["callers"]["owner"]]
    assert said["instance"]["since_ms"] == running.started_ms
    assert said["contracts"] == []
    assert "secret-engine-key" not in answer.text
    assert key_file.read_text(encoding="utf-8").splitlines()[1] not in answer.text


@pytest.mark.parametrize("wrong", ["another epoch", "old", "none", "garbage"])
def test_what_no_worker_says_of_now_is_no_evidence(
    admin: TestClient, key_file: Path, running: RunningEngine, raw_redis: redis.Redis, wrong: str
) -> None:
    assert key_file
    said = {
        "another epoch": replace(running, epoch="e0").to_json(),
        "old": replace(running, read_ms=running.read_ms - 61_000).to_json(),
        "none": None,
        "garbage": b"{}",
    }[wrong]
    if said is None:
        raw_redis.hdel(redis_keys.EVIDENCE, "i1")
    else:
        raw_redis.hset(redis_keys.EVIDENCE, "i1", said)
    answer = admin.get(ADDRESS)
    assert answer.status_code == 409
    assert "worker" in answer.json()["error"]["message"]


def test_without_a_good_key_nothing_is_signed(
    admin: TestClient, app: FastAPI, running: RunningEngine, tmp_path: Path
) -> None:
    assert running.read_ms <= time.time() * 1000 + 60_000
    assert "TAAS_EVIDENCE_KEY_FILE" in admin.get(ADDRESS).json()["error"]["message"]
    path = tmp_path / "evidence.key"
    app.state.control = replace(app.state.control, evidence_key_file=path)
    assert admin.get(ADDRESS).status_code == 409
    path.write_text("no key", encoding="utf-8")
    path.chmod(0o600)
    assert "cannot be used" in admin.get(ADDRESS).json()["error"]["message"]
    path.write_text(make_key(), encoding="utf-8")
    path.chmod(0o640)
    assert "chmod 600" in admin.get("/admin/v1/evidence-key").json()["error"]["message"]


def test_an_instance_that_is_not_there_has_no_evidence(admin: TestClient, key_file: Path) -> None:
    assert key_file
    assert admin.get("/admin/v1/instances/nobody/evidence").status_code == 404
