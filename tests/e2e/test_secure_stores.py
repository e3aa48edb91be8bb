"""The whole product on stores as a careful operator runs them: Redis with TLS, client certificates and an ACL
user for each process with the rights of `deploy/redis/users.acl`, PostgreSQL with `verify-full` behind
PgBouncer in transaction mode.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import make_url

from billing.wire import redis_keys
from billing.wire.redis_address import parse_redis_url
from tests.fixtures.engine import SimEngine
from tests.fixtures.forked import start_module
from tests.fixtures.gateway import wait_until
from tests.fixtures.secure_stores import (
    Certificates,
    Pooler,
    StartRedis,
    StoreProcess,
    system_program,
    tls_arguments,
    tls_options,
)
from tests.fixtures.valkey import free_port
from tests.source_tree import ROOT

ACL_FILE = ROOT / "deploy" / "redis" / "users.acl"
PASSWORD = "p/w#1?2@3"
ESCAPED = "p%2Fw%231%3F2%403"
ADMIN_KEY, SERVICE_KEY = "taas-admin-test", "taas-service-test"
FAKE_ENGINE = ROOT / "tests" / "serving" / "fake_engine.py"


class Installation:
    """Its processes, each with a URL of its own, and an operator's client to Redis."""

    def __init__(self, folder: Path, redis_server: StoreProcess, options: str, database_url: str) -> None:
        self.folder = folder
        self._redis = redis_server
        self._options = options
        self._database_url = database_url
        self._stack = ExitStack()
        self.admin_port, self.port = free_port(), free_port()
        self.operator = redis.Redis(**parse_redis_url(self.redis_url("operator")).client_arguments())

    def redis_url(self, user: str) -> str:
        return f"rediss://{user}:{ESCAPED}@127.0.0.1:{self._redis.port}/0{self._options}"

    def start(self, name: str, *command: str, user: str, **environment: str) -> None:
        inherited = {word: value for word, value in os.environ.items() if not word.startswith("TAAS_")}
        home = self.folder / name
        home.mkdir()
        given = {"TAAS_HOME": str(home), "TAAS_REDIS_URL": self.redis_url(user), **environment}
        log = self.folder / f"{name}.log"
        process = start_module(*command, environment=inherited | given, log=log)
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.terminate)

    def start_all(self) -> None:
        billing_metrics, gateway_metrics, worker_metrics = (str(free_port()) for _ in range(3))
        self.start(
            "billing", "billing", user="taas-billing", TAAS_DATABASE_URL=self._database_url,
            TAAS_ADMIN_KEY=ADMIN_KEY, TAAS_SERVICE_KEY=SERVICE_KEY, TAAS_ADMIN_PORT=str(self.admin_port),
            TAAS_BILLING_METRICS_PORT=billing_metrics, TAAS_COUNTERS_INTERVAL_MS="500",
        )  # fmt: skip
        wait_until(lambda: _answers(f"http://127.0.0.1:{self.admin_port}/healthz"), "billing", timeout_s=60)
        self.start(
            "gateway", "gateway", user="taas-gateway", TAAS_GATEWAY_PORT=str(self.port),
            TAAS_GATEWAY_METRICS_PORT=gateway_metrics, TAAS_ADMIN_URL=f"http://127.0.0.1:{self.admin_port}",
            TAAS_SERVICE_KEY=SERVICE_KEY,
        )  # fmt: skip
        self.admin("POST", "models", name="m", context_tokens=2048, engine_model="m-engine")
        python = self.folder / "python"
        # Called as `python -m vllm.entrypoints.openai.api_server …`.
        python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {FAKE_ENGINE} "$@"\n')
        python.chmod(0o755)
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        self.start(
            "worker", "serving", "m", "--path", str(model), "--host", "127.0.0.2", user="taas-worker",
            TAAS_VLLM_PYTHON=str(python), TAAS_WORKER_METRICS_PORT_FIRST=worker_metrics,
            FAKE_PIDS=str(self.folder / "pids"), TAAS_ENGINE_PORT_FIRST=str(free_port()),
        )  # fmt: skip

    def admin(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.request(
            method, f"http://127.0.0.1:{self.admin_port}/admin/v1/{path}", json=body or None, timeout=60,
            trust_env=False, headers={"authorization": f"Bearer {ADMIN_KEY}"},
        )  # fmt: skip
        assert answer.is_success, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def denied(self) -> list[str]:
        """What Redis has not permitted."""
        return [
            f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in self.operator.acl_log()
        ]

    def stop(self) -> None:
        self._stack.close()
        self.operator.close()


@pytest.fixture
def installation(
    tmp_path: Path, start_redis: StartRedis, certificates: Certificates, pgbouncer: Pooler, database_url: str
) -> Iterator[Installation]:
    rules = re.sub(r">[A-Z]+_PASSWORD", f">{PASSWORD}", ACL_FILE.read_text())
    acl_path = tmp_path / "users.acl"
    acl_path.write_text(f"{rules}user operator on >{PASSWORD} ~* &* +@all\n")
    options = tls_options(certificates)
    server = start_redis(
        system_program("redis-server"), *tls_arguments(certificates), "--aclfile", str(acl_path),
        url=f"rediss://operator:{ESCAPED}@127.0.0.1:{{port}}{options}",
    )  # fmt: skip
    database = pgbouncer.url(
        make_url(database_url).database or "",
        "postgres",
        sslmode="verify-full",
        sslrootcert=certificates.path("ca.pem"),
    )
    made = Installation(tmp_path, server, options, database)
    yield made
    made.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _worker_is_ready(installation: Installation) -> bool:
    rows = installation.admin("GET", "instances")["data"]
    return any(row["url"].startswith("http://127.0.0.2:") and row["status"] == "ready" for row in rows)


def test_it_serves_bills_and_audits_with_the_documented_rights_alone(
    installation: Installation, engine: SimEngine
) -> None:
    installation.start_all()
    _serve_and_bill(installation, engine)
    wait_until(lambda: _worker_is_ready(installation), "worker", timeout_s=30)
    # What Redis has lost is written again, by the same rights.
    installation.operator.flushall()
    wait_until(lambda: bool(installation.operator.exists(redis_keys.PROJECTION)), "projection")
    wait_until(
        lambda: bool(installation.operator.exists(redis_keys.intact("sim"))), "a cell that is counted anew"
    )
    assert installation.denied() == []
    for name in ("billing", "gateway", "worker"):
        assert PASSWORD not in installation.log(name)
        assert "Traceback" not in installation.log(name)
    assert "Redis has " not in installation.log("billing"), "its persistence is what the product relies on"


def _serve_and_bill(installation: Installation, engine: SimEngine) -> None:
    admin = installation.admin
    admin("POST", "models", name="sim", context_tokens=4096)
    admin("POST", "prices", model="sim", input="1", output="1")
    tenant = admin("POST", "tenants", name="acme")["tenant"]
    key = admin("POST", "keys", tenant=tenant, project="default")["key"]
    admin("POST", "instances", model="sim", url=engine.url, key=engine.key, instance="sim-1")
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{installation.port}",
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
    )
    body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}

    def served() -> bool:
        try:
            return client.post("/v1/chat/completions", json=body).status_code == 200
        except httpx.TransportError:
            return False

    with client:
        wait_until(served, "a served request", timeout_s=30)
        answer = client.post("/v1/chat/completions", json=body | {"stream": True})
        assert "[DONE]" in answer.text
        request_id = answer.headers["x-request-id"]

        def recorded() -> bool:
            receipt = client.get(f"/v1/usage/requests/{request_id}")
            return receipt.status_code == 200 and receipt.json()["state"] == "recorded"

        wait_until(recorded, "a receipt", timeout_s=30)
    report = admin("GET", "audit")
    assert report["residual_tokens"] == 0, report
