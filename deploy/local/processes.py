"""Start, find and stop detached processes of one home. A process is known by its pid and its start time, so a
pid that was given to another program since is never taken for ours. Knows nothing of what the processes do.
Linux: it reads /proc.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from deploy.local.progress import StepFailed, last_words
from deploy.local.settings import HOME_MARK

_POLL_S: Final = 0.1
# After SIGKILL only the kernel stands between a process and its end.
_KILL_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """A process that was started: `started_ticks` is field 22 of /proc/PID/stat, clock ticks since boot.
    `made_of`: its command and settings.
    """

    name: str
    pid: int
    started_ticks: int
    made_of: str

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return _started_ticks(self.pid) == self.started_ticks


class Processes:
    """The processes of one home: a pid file each under `run/`, a log each under `logs/`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._run = home / "run"
        self._logs = home / "logs"

    def log_of(self, name: str) -> Path:
        """Where its output goes, added to the end of what is there."""
        return self._logs / f"{name}.log"

    def find(self, name: str) -> Running | None:
        """The process of this name if it runs."""
        try:
            said = json.loads((self._run / f"{name}.json").read_text(encoding="utf-8"))
            running = Running(name, int(said["pid"]), int(said["started_ticks"]), str(said["made_of"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return running if running.is_alive() else None

    def find_as(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Running | None:
        """The process of this name if it runs with this command and these settings."""
        running = self.find(name)
        return running if running is not None and running.made_of == _made_of(command, environment) else None

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Running:
        """Start it in a session of its own, so that it survives us and our terminal."""
        self._run.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log_of(name).open("ab") as log:
            process = subprocess.Popen(
                command, env=dict(environment), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        running = Running(name, process.pid, _started_ticks(process.pid) or 0, _made_of(command, environment))
        # It outlives us; without this Python warns that nobody waited for it.
        process.returncode = 0
        path = self._run / f"{name}.json"
        path.write_text(json.dumps(asdict(running)), encoding="utf-8")
        return running

    def wait_until(
        self,
        running: Running,
        healthy: Callable[[], bool],
        timeout_s: float,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Until it is healthy. StepFailed when it ends or takes too long; what it said last is the reason."""
        log = self.log_of(running.name)
        deadline = time.monotonic() + timeout_s
        while not healthy():
            if not running.is_alive():
                raise StepFailed(
                    f"{running.name} ended: {last_words(log) or 'it said nothing'}",
                    "Mend what it says, then run it again.",
                    log,
                )
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"{running.name} runs but does not answer after {timeout_s:.0f} s",
                    "Read its log; `make down` stops it.",
                    log,
                )
            note(last_words(log, 1))
            time.sleep(_POLL_S)

    def stop(self, name: str, grace_s: float) -> bool:
        """SIGTERM to it alone, so that it ends its own children in order; after `grace_s` SIGKILL to its
        whole session. Whether it ran.
        """
        running = self.find(name)
        if running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGTERM)
            if not _wait_for_end(running, grace_s):
                _kill_session(running.pid)
                _wait_for_end(running, _KILL_WAIT_S)
        (self._run / f"{name}.json").unlink(missing_ok=True)
        return running is not None

    def leftovers(self) -> list[psutil.Process]:
        """Every process of this home that still runs, never ourselves or our parents. A program that
        merely reads a log is none.
        """
        home = str(self._home)
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [
            process
            for process in psutil.process_iter()
            if process.pid not in ours and _belongs(process, home)
        ]

    def end_leftovers(self) -> list[str]:
        """End what is left, and say what it was."""
        left = self.leftovers()
        names = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                names.append(f"{process.name()} ({process.pid})")
                process.terminate()
        _, stubborn = psutil.wait_procs(left, timeout=_KILL_WAIT_S)
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, timeout=_KILL_WAIT_S)
        return names


def _belongs(process: psutil.Process, home: str) -> bool:
    folders = [f"{home}/{name}" for name in ("valkey", "postgres", "models")]
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # Workers of PostgreSQL and of vLLM write over what /proc shows of their environment; then the folder
        # or the command line tells.
        if process.environ().get(HOME_MARK) == home:
            return True
        words = [process.cwd(), *process.cmdline()]
        return any(_inside(word, folder) for word in words for folder in folders)
    except psutil.Error:
        return False


def _made_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    settings = sorted(item for item in environment.items() if item[0].startswith("TAAS_"))
    return hashlib.sha256(json.dumps([list(command), settings]).encode()).hexdigest()


def _inside(path: str, home: str) -> bool:
    return path == home or path.startswith(home + "/")


def _started_ticks(pid: int) -> int | None:
    """None when no such process runs, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, field 2, may hold anything, so count from its closing bracket: field 3 is the state.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _wait_for_end(running: Running, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while running.is_alive():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(running.pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _kill_session(session: int) -> None:
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == session:
                os.kill(process.pid, signal.SIGKILL)
