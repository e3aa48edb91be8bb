"""`taas evidence verify`: offline, exit status 0 or 1, and the words that say what differs."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from billing.wire.evidence import make_key, public_pem, read_private_key, sign
from deploy.cli.main import main

KEY = read_private_key(make_key())
SECTIONS: dict[str, Any] = {
    "weights": {"sha256": {"model.safetensors": "ab"}},
    "process": {"listening": ["127.0.0.1:8100"]},
    "callers": {"owner": "ten_a"},
    "issued": {"at_ms": 1},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAAS_HOME", str(tmp_path))
    (tmp_path / "evidence.pub").write_text(public_pem(KEY), encoding="utf-8")
    (tmp_path / "good.json").write_text(json.dumps(sign(SECTIONS, KEY)), encoding="utf-8")
    return tmp_path


def verify(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["evidence", "verify", *map(str, words)])


def test_good_evidence_is_said_to_be_good(folder: Path) -> None:
    assert verify(folder / "good.json").exit_code == 0
    assert verify(folder / "good.json", "--key", folder / "evidence.pub").exit_code == 0


def test_a_changed_section_is_named(folder: Path) -> None:
    document = sign(SECTIONS, KEY)
    document["evidence"]["weights"] = {"sha256": {"model.safetensors": "cd"}}
    (folder / "bad.json").write_text(json.dumps(document), encoding="utf-8")
    result = verify(folder / "bad.json")
    assert (result.exit_code, result.output) == (1, "weights: changed after it was signed\n")


def test_what_differs_from_earlier_evidence_is_named(folder: Path) -> None:
    now = copy.deepcopy(SECTIONS)
    now["process"]["listening"].append("0.0.0.0:9")
    (folder / "now.json").write_text(json.dumps(sign(now, KEY)), encoding="utf-8")
    result = verify(folder / "now.json", "--against", folder / "good.json")
    assert (result.exit_code, result.output) == (1, 'process.listening: now also "0.0.0.0:9"\n')
    assert verify(folder / "good.json", "--against", folder / "good.json").exit_code == 0


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"version": 9}'])
def test_what_is_no_evidence_is_refused_in_one_line(folder: Path, text: str | None) -> None:
    if text is not None:
        (folder / "none.json").write_text(text, encoding="utf-8")
    result = verify(folder / "none.json")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1


def test_without_the_public_key_nothing_is_said_to_be_good(folder: Path) -> None:
    (folder / "evidence.pub").unlink()
    assert verify(folder / "good.json").exit_code == 1
