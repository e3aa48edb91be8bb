"""A key in a file: who may read it, and what it may hold."""

import os
from pathlib import Path

import click
import pytest

from deploy.cli.key_file import KEY_CHARS_MAX, read_key_file


def written(path: Path, text: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("text", [b"sk-1", b"sk-1\n", b"  sk-1 \r\n\n"])
def test_a_key_is_read_without_the_space_around_it(tmp_path: Path, text: bytes) -> None:
    assert read_key_file(written(tmp_path / "key", text)) == "sk-1"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_a_file_that_others_may_use_is_refused_with_its_mode_and_the_remedy(
    tmp_path: Path, mode: int
) -> None:
    path = written(tmp_path / "key", b"sk-secret", mode)
    with pytest.raises(click.ClickException) as refusal:
        read_key_file(path)
    assert f"mode {mode:04o}" in refusal.value.message
    assert f"chmod 600 {path}" in refusal.value.message
    assert "sk-secret" not in refusal.value.message


@pytest.mark.parametrize(
    "text", [b"", b" \n", b"sk 1", b"sk\n1", b"sk-\xc3\xa9", b"sk-\x00", b"k" * (KEY_CHARS_MAX + 1)]
)
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(click.ClickException) as refusal:
        read_key_file(written(tmp_path / "key", text))
    assert not text.strip() or text.decode(errors="replace") not in refusal.value.message


def test_the_longest_key_is_read(tmp_path: Path) -> None:
    assert len(read_key_file(written(tmp_path / "key", b"k" * KEY_CHARS_MAX))) == KEY_CHARS_MAX


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path, tmp_path / "nothing"):
        with pytest.raises(click.ClickException):
            read_key_file(path)
