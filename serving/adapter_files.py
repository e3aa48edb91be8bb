"""The files of a LoRA adapter, as PEFT writes them, checked against those of its base before an engine sees
them: an engine would die of layers that do not fit. It reads shapes, not weights, and no format that can hold
programs.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Final

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PEFT_PREFIX: Final = "base_model.model."
# A layer of the base with shape (out, in) has the parts A with (rank, in) and B with (out, rank).
_PARTS: Final = (".lora_A.weight", ".lora_B.weight")
_CONFIG_BYTES_MAX: Final = 1 << 20
# The format's own limit.
_HEADER_BYTES_MAX: Final = 100_000_000
_PIECE_BYTES: Final = 1 << 20

Shape = tuple[int, ...]


class AdapterRefused(Exception):
    """An adapter that must not be loaded. The text says why, for its operator."""


def check_adapter(folder: Path, base: Path, rank_max: int) -> str:
    """The SHA-256 of its files, in hex; takes a second for a gigabyte. `base`: the folder of the base model.
    Raises AdapterRefused unless its files can be read, its rank is at most `rank_max`, and each of its layers
    fits one of the base.
    """
    try:
        if not folder.is_dir():
            raise AdapterRefused(f"there is no folder {folder} on this machine")
        _check_config(folder / CONFIG)
        layers = _read_layers(folder / WEIGHTS)
        _check_layers(layers, _base_shapes(base), rank_max)
        return _digest(folder / CONFIG, folder / WEIGHTS)
    except OSError as exc:
        raise AdapterRefused(f"{exc.filename}: {exc.strerror}") from exc


def _check_config(path: Path) -> None:
    if not path.is_file():
        raise AdapterRefused(f"{path.parent} has no {CONFIG}: it is no adapter as PEFT saves it")
    with path.open("rb") as file:
        raw = file.read(_CONFIG_BYTES_MAX + 1)
    try:
        config = json.loads(raw) if len(raw) <= _CONFIG_BYTES_MAX else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise AdapterRefused(f"{path} is not a JSON object of at most 1 MiB")
    if config.get("peft_type") != "LORA":
        raise AdapterRefused(f"its peft_type is {str(config.get('peft_type'))[:40]!r}, not 'LORA'")


def _read_layers(weights: Path) -> dict[str, dict[str, Shape]]:
    """The shapes of the parts, by layer and part."""
    if not weights.is_file():
        raise AdapterRefused(f"{weights.parent} has no {WEIGHTS}, the only format of weights that is loaded")
    layers: dict[str, dict[str, Shape]] = {}
    for key, shape in _read_shapes(weights).items():
        part = next((end for end in _PARTS if key.endswith(end)), None)
        if part is None or len(shape) != 2:
            raise AdapterRefused(f"it holds {key[:200]}, which is no part of a LoRA layer")
        layers.setdefault(key.removesuffix(part).removeprefix(_PEFT_PREFIX), {})[part] = shape
    if not layers:
        raise AdapterRefused(f"{WEIGHTS} holds no layer")
    return layers


def _check_layers(layers: dict[str, dict[str, Shape]], base: dict[str, Shape], rank_max: int) -> None:
    for name, parts in layers.items():
        there = base.get(f"{name}.weight")
        if there is None or len(there) != 2:
            raise AdapterRefused(f"it is of another base: this one has no layer {name[:200]}")
        a, b = (parts.get(part) for part in _PARTS)
        if a is None or b is None or a[0] != b[1]:
            raise AdapterRefused(f"its two parts of {name} do not belong together")
        if a[0] > rank_max:
            raise AdapterRefused(
                f"its rank is {a[0]}, and this worker takes at most {rank_max}: start it with --adapter-rank"
            )
        if (b[0], a[1]) != there:
            raise AdapterRefused(
                f"it is of another base: {name} is {there[0]} x {there[1]}, and the adapter's {b[0]} x {a[1]}"
            )


def _base_shapes(base: Path) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for path in sorted(base.glob("*.safetensors")):
        shapes |= _read_shapes(path)
    if not shapes:
        raise AdapterRefused(f"the base in {base} has no .safetensors to check it against")
    return shapes


def _read_shapes(path: Path) -> dict[str, Shape]:
    """By the name of the tensor, from the file's header: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        raw = file.read(size) if 0 < size <= _HEADER_BYTES_MAX else b""
    try:
        header: Any = json.loads(raw)
        return {
            str(name): tuple(int(side) for side in tensor["shape"])
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise AdapterRefused(f"{path} is not in the format of safetensors") from exc


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()
