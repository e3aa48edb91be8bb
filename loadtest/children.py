"""Child processes of benchmark and tests: started on a core, waited for by asking, stopped in the end."""

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

import httpx
import psutil

from loadtest.forked import ForkedProgram, Program
from loadtest.settings import child_environment

_READY_S = 120.0
_STOP_S = 30.0
_AGAIN_S = 0.05
# Below Linux's and macOS's ephemeral ports, which outgoing connections take without asking.
_PORTS = range(10_240, 32_768)
_BLOCK_PORTS = 64
T = TypeVar("T")


class DidNotStart(Exception):
    """A child ended, or did not answer in time; the message holds its last words."""


@cache  # before anybody is pinned
def cores() -> tuple[int, int]:
    """(core of backend and driver, core of the gateway); the same one where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1] if len(usable) > 1 else usable[0]


def stop_children_on_sigterm() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does, by its `finally`s, so that no child outlives
    it; with the usual status.
    """

    def end(_: int, frame: FrameType | None) -> None:
        # Python drops what is raised while an object is finalized: try again when that is over.
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
                return
            frame = frame.f_back
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # once is enough: the clean-up is not to be cut short
        sys.exit(128 + signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, end)


class _Ports:
    """Ports for this process alone, though whoever is given one may listen on it only seconds later.

    They come in blocks. To bind the first port of a block claims it from every other process that asks here;
    the kernel gives the claim back however this process ends.
    """

    def __init__(self) -> None:
        self._left: list[int] = []

    def next(self) -> int:
        """The next port that nothing uses now."""
        while True:
            if not self._left:
                self._left = self._claim_block()
            port = self._left.pop(0)
            if probe := _bound(port):
                probe.close()
                return port

    def _claim_block(self) -> list[int]:
        firsts = list(_PORTS[::_BLOCK_PORTS])
        random.shuffle(firsts)
        for first in firsts:
            if claim := _bound(first):
                claim.detach()  # left open for as long as this process lives
                return list(range(first + 1, first + _BLOCK_PORTS))
        raise OSError(f"other processes hold every port from {_PORTS.start} to {_PORTS.stop - 1}")


def _bound(port: int) -> socket.socket | None:
    """A socket that holds this port on loopback, or None where another has it."""
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        return None
    return holder


_ports = _Ports()


def free_port() -> int:
    """A TCP port on loopback that is free, and that no other caller of this function is given, in any
    process.
    """
    return _ports.next()


class Child:
    """One process and its log. Without a core it runs wherever the system puts it. `forked`: `python -m …` as
    a fork that has its imports done, where nobody measures what it uses.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        core: int | None,
        folder: Path,
        environment: dict[str, str] | None = None,
        *,
        forked: bool = False,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._process: Program
        if forked and command[:2] == python("-m") and core is None:
            module, *arguments = command[2:]
            self._process = ForkedProgram(
                module, arguments, child_environment(environment or {}), folder=folder, log=self._log
            )
            self.pid = self._process.pid
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True,
                env=child_environment(environment or {}),
                preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
            )  # fmt: skip
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Ask until it says yes."""
        deadline = time.monotonic() + _READY_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                state = (
                    f"ended with {self._process.returncode}"
                    if self._process.poll() is not None
                    else f"did not answer in {_READY_S:.0f} s"
                )
                raise DidNotStart(f"{self.name} {state}:\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]

    def reap(self) -> None:
        """Wait for its end, after a signal that nothing outlives."""
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not heeded."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_s(self) -> float:
        """CPU time used so far, over the process tree."""
        return sum(self._each(lambda process: float(process.cpu_times().user + process.cpu_times().system)))

    def pids(self) -> list[int]:
        """The processes of the tree, its root first."""
        return self._each(lambda process: int(process.pid))

    def rss_bytes(self) -> int:
        """Memory in use, over the process tree."""
        return sum(self._each(lambda process: int(process.memory_info().rss)))

    def _each(self, read: Callable[[psutil.Process], T]) -> list[T]:
        root = psutil.Process(self.pid)
        found = []
        for process in [root, *root.children(recursive=True)]:
            try:
                found.append(read(process))
            except psutil.NoSuchProcess:
                continue
        return found


# For what speaks HTTP without TLS: httpx would otherwise read the machine's certificates for each client, 50
# ms of CPU.
NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def answers(url: str, headers: dict[str, str] | None = None) -> Callable[[], bool]:
    """A readiness question: does this URL answer 200?"""

    def ask() -> bool:
        try:
            return (
                httpx.get(
                    url, headers=headers, timeout=2, trust_env=False, verify=NO_CERTIFICATES
                ).status_code
                == 200
            )
        except httpx.TransportError:
            return False

    return ask


def python(*words: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *words]
