"""Keys of a home: made once, private, and read back as they were written."""

import stat
import subprocess
from pathlib import Path

import pytest

from deploy.local import credentials
from deploy.local.settings import LocalSettings, child_environment


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    made = credentials.load_or_make(tmp_path)
    assert credentials.load_or_make(tmp_path) == made
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    assert len({made.admin_key, made.service_key, made.valkey_password}) == 3
    assert made.admin_key not in repr(made)


def test_given_keys_win(tmp_path: Path) -> None:
    settings = LocalSettings(home=tmp_path, admin_key="given")
    assert credentials.of(settings).admin_key == "given"
    assert credentials.of(LocalSettings(home=tmp_path)).admin_key != "given"


def test_a_damaged_file_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{}")
    with pytest.raises(ValueError, match=r"secrets\.json is damaged"):
        credentials.load_or_make(tmp_path)


def test_a_shell_reads_an_env_file_as_it_was_written(tmp_path: Path) -> None:
    values = {"PLAIN": "http://127.0.0.1:8000/v1", "HARD": "a b'c\"$d`e&f?g"}
    credentials.write_env(tmp_path / "x.env", values)
    assert credentials.read_env(tmp_path / "x.env") == values
    shell = subprocess.run(
        ["sh", "-c", f'set -a; . {tmp_path}/x.env; printf "%s" "$HARD"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == values["HARD"]


def test_no_process_inherits_keys_and_addresses_that_are_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TAAS_DATABASE_URL", "TAAS_ADMIN_KEY", "TAAS_ENGINE_KEY"):
        monkeypatch.setenv(name, "secret")
    environment = child_environment(LocalSettings(home=tmp_path), TAAS_REDIS_URL="redis://x")
    assert "secret" not in environment.values()
    assert environment["TAAS_REDIS_URL"] == "redis://x"
    assert environment["TAAS_HOME"] == str(tmp_path)
