"""How `taas` finds the admin API, and what it says when it does not."""

from pathlib import Path

import pytest

from deploy.cli.connection import find_address
from tests.deploy.cli.conftest import ADMIN_KEY, run
from tests.fixtures.valkey import free_port


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; nothing of this machine's environment."""
    for name in ("TAAS_ADMIN_URL", "TAAS_ADMIN_KEY", "TAAS_ENGINE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAAS_HOME", str(tmp_path))
    return tmp_path


def test_without_any_key_it_says_what_to_set(home: Path):
    message = run("tenant", "list", exit_code=1).stderr
    for word in ("TAAS_ADMIN_URL", "TAAS_ADMIN_KEY", "taas up", str(home / "demo.env")):
        assert word in message


def test_it_reads_what_up_has_written(home: Path, admin_url: str):
    (home / "demo.env").write_text(
        f"# demo\nexport TAAS_ADMIN_URL={admin_url}\nTAAS_ADMIN_KEY='{ADMIN_KEY}'\nOTHER=1\n"
    )
    run("tenant", "list")


def test_the_environment_wins_over_the_file(home: Path, admin_url: str, monkeypatch: pytest.MonkeyPatch):
    (home / "demo.env").write_text(f"TAAS_ADMIN_URL=http://127.0.0.1:{free_port()}\nTAAS_ADMIN_KEY=other\n")
    monkeypatch.setenv("TAAS_ADMIN_URL", admin_url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", ADMIN_KEY)
    run("tenant", "list")


def test_the_key_of_the_file_is_not_sent_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch):
    (home / "demo.env").write_text("TAAS_ADMIN_URL=http://127.0.0.1:8001\nTAAS_ADMIN_KEY=local\n")
    assert find_address().key == "local"
    monkeypatch.setenv("TAAS_ADMIN_URL", "http://elsewhere.example")
    assert "no admin key for http://elsewhere.example" in run("tenant", "list", exit_code=1).stderr


def test_billing_not_running_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TAAS_ADMIN_KEY", "x")
    message = run("tenant", "list", exit_code=1).stderr
    assert "taas up" in message
    assert "taas billing" in message


def test_a_wrong_key_is_told_as_such(admin_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_URL", admin_url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", "wrong")
    message = run("tenant", "list", exit_code=1).stderr
    assert "does not know this admin key" in message
    assert "wrong" not in message


@pytest.mark.parametrize("url", ["not a url", "http://[", "ftp://h", "http://127.0.0.1:1:1"])
def test_a_url_that_is_none_is_an_error_not_a_traceback(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_URL", url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", "x")
    assert run("tenant", "list", exit_code=1).stderr.startswith("Error: ")
