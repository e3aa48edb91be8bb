"""A live admin API on a port of its own, and the command that speaks to it."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import uvicorn
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, insert

from billing.api.app import build_app
from billing.schema.capacity import calibration
from billing.settings import BillingSettings
from billing.wire.evidence import make_key
from deploy.cli.main import main

ADMIN_KEY = "adm-cli-test"

Taas = Callable[..., Result]


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


@pytest.fixture
def signing_key(tmp_path: Path) -> Path:
    """The file of a new private key."""
    path = tmp_path / "evidence.key"
    path.write_text(make_key(), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def admin_url(migrated_database_url: str, valkey_url: str, signing_key: Path) -> Iterator[str]:
    """The URL of an admin API on a fresh database and an emptied Valkey."""
    engine = create_engine(migrated_database_url)
    with redis.Redis.from_url(valkey_url) as client:
        settings = BillingSettings(admin_key=ADMIN_KEY, evidence_key_file=signing_key, issuer="us")
        app = build_app(settings, engine, client)
        server = _Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        assert server.up.wait(10)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()
    engine.dispose()


@pytest.fixture
def taas(admin_url: str, monkeypatch: pytest.MonkeyPatch) -> Taas:
    """Runs `taas ARGS…` with the environment set, and expects this exit status."""
    monkeypatch.setenv("TAAS_ADMIN_URL", admin_url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", ADMIN_KEY)
    return run


@pytest.fixture
def told(taas: Taas) -> Callable[..., Any]:
    """Runs `taas ARGS… --json` and returns what it says."""

    def run_json(*args: str) -> Any:
        return json.loads(taas(*args, "--json").stdout)

    return run_json


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command of this process is given to read comes from a terminal."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)


def run(*args: str, exit_code: int = 0) -> Result:
    """The command in this process, with the environment as it is."""
    result = CliRunner().invoke(main, args)
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def shop(taas: Taas, told: Callable[..., Any], migrated_database_url: str) -> None:
    """The tenant acme and a measured pool of two instances, 1,000 units per second each."""
    told("tenant", "create", "acme")
    told("model", "add", "org/llama", "--context", "4096")
    told("price", "set", "--model", "org/llama", "--free")
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        connection.execute(
            insert(calibration).values(
                calibration_id="cal_1", pool="org/llama", model="org/llama", weights_version=1,
                capacity_mu_s=1_000_000, sequences=16, tpot_target_ms=50, ttft_target_ms=1000, hardware="cpu",
                engine_version="0.32", error_permille=30, report={},
            )
        )  # fmt: skip
    engine.dispose()
    assert told("pool", "set", "org/llama", "--instances", "2", "--headroom", "10%")["capacity"] == "1800"
