"""What the kernel and the disk say of a running engine: its command, its user, where it listens, its weights.

Linux only: it reads `/proc`. The engine itself is only asked for its version.
"""

import hashlib
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
# In the kernel's tables: a TCP socket that listens; a UDP socket that takes what anybody sends.
_OPEN_STATES: Final = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
_PIECE_BYTES: Final = 1 << 20
# What keeps requests out of vLLM's logs: flags of its command, and its environment.
_QUIET_FLAGS: Final = ("--no-enable-log-requests", "--no-enable-log-outputs")
_QUIET_ENVIRONMENT: Final = {
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "False",
}


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Of the processes of one group; the command is its first one's. `os_user`: all users that they have,
    real, effective and saved. `numbers`: of these, and of all their groups.
    """

    command: tuple[str, ...]
    os_user: str
    numbers: frozenset[int]
    listening: tuple[str, ...]
    requests_logged: bool


def read_processes(group: int, own_user: int | None = None) -> ProcessFacts:
    """`own_user`: a user that nothing but this model's engines should have; all that listens as this user is
    named, also a process that has left the group. Raises OSError when the engine is gone.
    """
    command = _words(group, "cmdline")
    environment = dict(word.partition("=")[::2] for word in _words(group, "environ"))
    quiet = all(flag in command for flag in _QUIET_FLAGS) and all(
        environment.get(name) == value for name, value in _QUIET_ENVIRONMENT.items()
    )
    users, groups = _numbers(group)
    sockets: set[str] = set()
    for pid in _group(group):
        sockets.update(_sockets(pid))
        with suppress(OSError):
            more_users, more_groups = _numbers(pid)
            users, groups = users | more_users, groups | more_groups
    return ProcessFacts(
        command,
        ", ".join(map(_user, sorted(users))),
        frozenset(users | groups),
        tuple(sorted(set(_listening(group, sockets, own_user)))),
        requests_logged=not quiet,
    )


@dataclass(slots=True)
class Weights:
    """The files of a model and their SHA-256. A file is read again when it has changed."""

    folder: Path
    _known: dict[str, tuple[tuple[int, int, int], str]] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """By the file's name below the folder; takes seconds for gigabytes. Raises OSError."""
        found: dict[str, tuple[tuple[int, int, int], str]] = {}
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            name, facts = str(path.relative_to(self.folder)), path.stat()
            state = facts.st_ino, facts.st_size, facts.st_mtime_ns
            known = self._known.get(name)
            found[name] = known if known is not None and known[0] == state else (state, _sha256(path))
        self._known = found
        return {name: digest for name, (_, digest) in found.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _words(pid: int, name: str) -> tuple[str, ...]:
    raw = (_PROC / str(pid) / name).read_bytes()
    return tuple(word.decode("utf-8", "replace") for word in raw.split(b"\0") if word)


def _numbers(pid: int) -> tuple[set[int], set[int]]:
    """Users and groups of a process: real, effective, saved, of its files, and supplementary groups."""
    users: set[int] = set()
    groups: set[int] = set()
    for line in (_PROC / str(pid) / "status").read_text(errors="replace").splitlines():
        name, _, said = line.partition(":")
        if name == "Uid":
            users.update(map(int, said.split()))
        elif name in {"Gid", "Groups"}:
            groups.update(map(int, said.split()))
    return users, groups


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _group(group: int) -> Iterator[int]:
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name of the program, in brackets, may have blanks.
            _, _, rest = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[2]) == group:
            yield int(entry.name)


def _sockets(pid: int) -> Iterator[str]:
    try:
        names = os.listdir(_PROC / str(pid) / "fd")
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(_PROC / str(pid) / "fd" / name)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def _listening(pid: int, sockets: set[str], user: int | None) -> Iterator[str]:
    for table, state in _OPEN_STATES.items():
        try:
            lines = (_PROC / str(pid) / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        family = socket.AF_INET6 if table.endswith("6") else socket.AF_INET
        for line in lines:
            words = line.split()
            if words[3] == state and (words[9] in sockets or int(words[7]) == user):
                yield ("udp " if table.startswith("udp") else "") + _address(words[1], family)


def _address(raw: str, family: socket.AddressFamily) -> str:
    """An address as the kernel writes it: 32-bit words in the machine's own order, then the port."""
    host, _, port = raw.partition(":")
    packed = b"".join(struct.pack("=I", int(host[start : start + 8], 16)) for start in range(0, len(host), 8))
    name = socket.inet_ntop(family, packed)
    return f"[{name}]:{int(port, 16)}" if family is socket.AF_INET6 else f"{name}:{int(port, 16)}"
