"""Our own Valkey and PostgreSQL: they survive their starter, keep what they were told, and are open to
their owner only.
"""

import contextlib
import stat
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from deploy.local import credentials, postgres, valkey
from deploy.local.processes import Processes
from deploy.local.progress import StepFailed
from deploy.local.settings import LocalSettings
from tests.deploy.conftest import Home
from tests.fixtures.valkey import free_port

START_POSTGRES = """
from deploy.local import postgres
from deploy.local.settings import LocalSettings
print(postgres.start(LocalSettings())[0])
"""


@pytest.fixture
def settings(home: Home) -> LocalSettings:
    return LocalSettings(home=home.folder, valkey_port=home.ports["VALKEY_PORT"])


def crash(processes: Processes) -> None:
    """kill -9 of all that runs; PostgreSQL's children go with their parent."""
    left = processes.leftovers()
    assert left
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def test_postgres_survives_its_starter_and_keeps_its_rows(home: Home, settings: LocalSettings) -> None:
    url = home.python(START_POSTGRES).stdout.strip()
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    assert postgres.url(settings) == url
    assert postgres.stop(settings)
    assert postgres.url(settings) is None
    assert not postgres.stop(settings)
    again, started = postgres.start(settings)
    assert started
    assert postgres.start(settings) == (again, False)
    with psycopg.connect(plain(again)) as connection:
        assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]


def test_postgres_socket_is_its_owners(settings: LocalSettings) -> None:
    url, _ = postgres.start(settings)
    socket = Path(url.partition("host=")[2]) / ".s.PGSQL.5432"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700, (
        "local connections need no password, so only the owner may connect"
    )


def test_postgres_starts_where_the_path_is_too_long_for_a_socket(home: Home) -> None:
    folder = home.folder / ("a" * 100)
    folder.mkdir()
    settings = LocalSettings(home=folder)
    url, _ = postgres.start(settings)
    try:
        psycopg.connect(plain(url)).close()
    finally:
        postgres.stop(settings)


def test_postgres_starts_after_a_crash(settings: LocalSettings) -> None:
    postgres.start(settings)
    crash(Processes(settings.folder))
    assert postgres.url(settings) is None
    _, started = postgres.start(settings)
    assert started


def test_a_postgres_that_does_not_answer_is_told_by_name() -> None:
    with pytest.raises(StepFailed, match="TAAS_DATABASE_URL does not answer"):
        postgres.check_given(f"postgresql+psycopg://127.0.0.1:{free_port()}/taas")


def test_valkey_keeps_what_it_acknowledged_over_a_crash(settings: LocalSettings) -> None:
    keys, processes = credentials.of(settings), Processes(settings.folder)
    assert valkey.start(settings, keys, processes)
    assert not valkey.start(settings, keys, processes)
    with redis.Redis.from_url(valkey.url(settings, keys)) as client:
        client.set("kept", "1")
    crash(processes)
    assert valkey.start(settings, keys, processes)
    with redis.Redis.from_url(valkey.url(settings, keys)) as client:
        assert client.get("kept") == b"1"
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_valkey_asks_for_the_password_and_ps_does_not_show_it(settings: LocalSettings) -> None:
    keys, processes = credentials.of(settings), Processes(settings.folder)
    valkey.start(settings, keys, processes)
    with (
        redis.Redis(port=settings.valkey_port) as nobody,
        pytest.raises(redis.AuthenticationError),
    ):
        nobody.ping()
    running = processes.find(valkey.NAME)
    assert running is not None
    assert keys.valkey_password not in Path(f"/proc/{running.pid}/cmdline").read_text()
    configuration = settings.folder / "valkey" / "valkey.conf"
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600


def test_a_redis_that_does_not_answer_is_told_by_name_and_without_its_password() -> None:
    with pytest.raises(StepFailed, match="TAAS_REDIS_URL does not answer") as failure:
        valkey.check_given(f"redis://:sesame@127.0.0.1:{free_port()}/0")
    assert "sesame" not in str(failure.value)
