"""Which files of an adapter an engine may see."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.adapter_files import WEIGHTS, AdapterRefused, check_adapter
from tests.fixtures.lora import parts, write_adapter, write_tensors

LAYER = "model.layers.0.self_attn.q_proj"
FITS = parts(LAYER, rank=8, out=6, inside=4)
BOTH = FITS | parts("model.layers.1.self_attn.q_proj", rank=4, out=6, inside=4)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """In two files, as large models are."""
    folder = tmp_path / "base"
    folder.mkdir()
    write_tensors(folder / "model-1.safetensors", {f"{LAYER}.weight": (6, 4), "model.norm.weight": (4,)})
    write_tensors(folder / "model-2.safetensors", {"model.layers.1.self_attn.q_proj.weight": (6, 4)})
    return folder


def test_one_that_fits_has_the_digest_of_all_that_is_loaded(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", BOTH)
    digest = check_adapter(folder, base, 8)
    assert len(digest) == 64
    assert check_adapter(folder, base, 8) == digest
    write_adapter(folder, BOTH, lora_alpha=8)
    other = check_adapter(folder, base, 8)
    assert other != digest
    write_adapter(folder, FITS, lora_alpha=8)
    assert check_adapter(folder, base, 8) not in {digest, other}


def broken(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (parts("model.layers.2.self_attn.q_proj", rank=8, out=6, inside=4), "has no layer model.layers.2"),
        (parts(LAYER, rank=8, out=7, inside=4), "of another base: model.layers.0.self_attn.q_proj is 6 x 4"),
        (parts(LAYER, rank=8, out=6, inside=5), "of another base"),
        (parts("model.norm", rank=8, out=4, inside=4), "has no layer model.norm"),
        (parts(LAYER, rank=9, out=6, inside=4), "its rank is 9, and this worker takes at most 8"),
        ({f"base_model.model.{LAYER}.lora_A.weight": (8, 4)}, "two parts"),
        (FITS | {f"base_model.model.{LAYER}.lora_B.weight": (6, 7)}, "two parts"),
        (FITS | {f"base_model.model.{LAYER}.lora_magnitude_vector": (6,)}, "no part of a LoRA layer"),
        ({}, "holds no layer"),
    ],
)
def test_one_of_another_base_or_kind_is_refused(
    base: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    folder = write_adapter(tmp_path / "a", shapes)
    with pytest.raises(AdapterRefused, match=says):
        check_adapter(folder, base, 8)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda folder: broken(folder, "adapter_config.json", b"[" * 100_000), "not a JSON object"),
        (lambda folder: broken(folder, "adapter_config.json", b" " * 2_000_000), "at most 1 MiB"),
        (lambda folder: broken(folder, "adapter_config.json", b'{"peft_type": "IA3"}'), "'IA3', not 'LORA'"),
        (lambda folder: broken(folder, WEIGHTS, b""), "format of safetensors"),
        (lambda folder: broken(folder, WEIGHTS, b"\xff" * 16), "format of safetensors"),
        (
            lambda folder: broken(folder, WEIGHTS, b"\x02" + b"\0" * 7 + b"[]"),
            "format of",
        ),
    ],
)
def test_files_that_are_no_adapter_are_refused(
    base: Path, tmp_path: Path, breaks: Callable[[Path], None], says: str
) -> None:
    folder = write_adapter(tmp_path / "a", FITS)
    breaks(folder)
    with pytest.raises(AdapterRefused, match=says):
        check_adapter(folder, base, 8)


def test_without_weights_of_the_base_nothing_is_loaded(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", FITS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterRefused, match="to check it against"):
        check_adapter(folder, tmp_path / "empty", 8)
    with pytest.raises(AdapterRefused, match="there is no folder"):
        check_adapter(tmp_path / "nowhere", tmp_path / "empty", 8)


def test_what_it_says_holds_no_more_of_a_file_than_a_name(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"x" * 10_000: (1,)})
    with pytest.raises(AdapterRefused) as refused:
        check_adapter(folder, base, 8)
    assert len(str(refused.value)) < 300
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "y" * 10_000}))
    with pytest.raises(AdapterRefused) as refused:
        check_adapter(folder, base, 8)
    assert len(str(refused.value)) < 300
