"""The OS user of a private model's engines: a number that nobody else has on this machine, and a folder of
its own. It starts no engine.

The numbers are from a range that distributions leave unused. Which number is whose stands in a folder of the
machine, as links from the number to the model's folder, so that all homes of a machine agree and a restart
changes nothing. Only root can give a process another user; without root there is a folder, but no such user.
"""

import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

# Between what systemd gives to greeters and to dynamic users; in no list of the distributions.
NUMBERS: Final = range(60_706, 61_184)
_FOLDERS_SCRIPT: Final = Path(__file__).with_name("private_folders.py")
_SCRIPT_S_MAX: Final = 60


class NoPrivateUser(Exception):
    """A private model cannot have what it needs. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class PrivateUser:
    """`number`: user and group. `folder`: its own, mode 0700. Not `own`: the worker is not root, so it is the
    worker's user.
    """

    number: int
    folder: Path
    own: bool

    @property
    def environment(self) -> dict[str, str]:
        """What an engine writes by itself stays in the folder."""
        folder, name = str(self.folder), f"taas-{self.number}"
        cache, temporary = f"{folder}/cache", str(self.folder / "tmp")
        return {
            "HOME": folder,
            "USER": name,
            "LOGNAME": name,
            "TMPDIR": temporary,
            # From the working directory, which is the folder: a socket's path has 107 characters at most.
            "VLLM_RPC_BASE_PATH": "tmp",
            "XDG_CACHE_HOME": cache,
            "XDG_CONFIG_HOME": f"{folder}/config",
            "XDG_DATA_HOME": f"{folder}/data",
            "XDG_STATE_HOME": f"{folder}/data",
            "XDG_RUNTIME_DIR": temporary,
            "VLLM_CACHE_ROOT": f"{cache}/vllm",
            "VLLM_CONFIG_ROOT": f"{folder}/config/vllm",
            "HF_HOME": f"{cache}/huggingface",
            "TORCH_HOME": f"{cache}/torch",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torchinductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "CUDA_CACHE_PATH": f"{cache}/cuda",
            "NUMBA_CACHE_DIR": f"{cache}/numba",
        }


def find_user(model: str, home: Path, numbers: Path) -> PrivateUser:
    """The user of a private model, the same each time; its folder is made. `numbers`: the folder of the
    machine that says whose each number is. Raises NoPrivateUser.
    """
    folder = (home / "private" / quote(model, safe="")).absolute()
    own = os.geteuid() == 0
    try:
        folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        number = _claim(folder, numbers) if own else os.geteuid()
        with suppress(FileNotFoundError):
            if folder.lstat().st_uid != number:
                # Caches of a user that it no longer is. Nothing in there is followed or kept.
                shutil.rmtree(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        if own:
            os.chown(folder, number, number)
        folder.chmod(0o700)
    except OSError as exc:
        raise NoPrivateUser(f"The folder of the private model {model} cannot be made: {exc}") from exc
    return PrivateUser(number, folder, own)


def make_folders(user: PrivateUser, python: Path, needed: Collection[Path]) -> None:
    """As this user, make the folders inside its own, and read what an engine has to read: `python`, and the
    files of the folders in `needed`. Raises NoPrivateUser.
    """
    number = user.number if user.own else None
    command = [str(python), "-I", "-S", str(_FOLDERS_SCRIPT), str(user.folder), *map(str, needed)]
    try:
        done = subprocess.run(
            command, cwd=user.folder, env={}, capture_output=True, text=True, check=False,
            timeout=_SCRIPT_S_MAX, user=number, group=number, extra_groups=None if number is None else (),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise _cannot_read(user, python, str(exc)) from exc
    if done.returncode:
        path, _, why = done.stdout.strip().rpartition(": ")
        within = (each for each in needed if Path(path).is_relative_to(each))
        closed = next(within, Path(path or python))
        raise _cannot_read(user, closed, why or done.stderr.strip() or "it does not run")


def _claim(folder: Path, numbers: Path) -> int:
    numbers.mkdir(parents=True, exist_ok=True)
    with _alone(numbers / ".lock"):
        taken = {int(link.name): os.readlink(link) for link in numbers.iterdir() if link.name.isdigit()}
        for number, whose in taken.items():
            if whose == str(folder):
                return number
        # Its own start in the range: where the links were lost, another model should not get this number.
        first = int.from_bytes(hashlib.sha256(os.fsencode(folder)).digest()) % len(NUMBERS)
        running = {owner for owner in _owners_of_processes() if owner in NUMBERS}
        order: list[int] = [*NUMBERS[first:], *NUMBERS[:first]]
        for free in order:
            if free not in taken and free not in running and not _is_known(free):
                (numbers / str(free)).symlink_to(folder)
                return free
    raise NoPrivateUser(
        f"All {len(NUMBERS)} users of private models are taken. Remove from {numbers} the links of models "
        "that are gone."
    )


def _is_known(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


def _owners_of_processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield entry.stat().st_uid


def _cannot_read(user: PrivateUser, path: Path, why: str) -> NoPrivateUser:
    closed = _closed(path, user.number)
    hint = (
        f"Let others pass through {closed} (`chmod o+x {closed}`), or install it elsewhere."
        if closed is not None
        else f"`chgrp -R {user.number} {path}; chmod -R g+rX {path}` lets it read this, and no other model."
    )
    return NoPrivateUser(f"The OS user {user.number} of the private model cannot use {path} ({why}). {hint}")


def _closed(path: Path, group: int) -> Path | None:
    """The first folder on the way to it through which this group may not pass."""
    for folder in reversed(path.resolve().parents):
        with suppress(OSError):
            facts = folder.stat()
            passes = stat.S_IXGRP if facts.st_gid == group else stat.S_IXOTH
            if not facts.st_mode & passes:
                return folder
    return None


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
