"""A small process between worker and engine, so that no engine outlives its worker, not even after kill -9.
It uses the standard library only and runs as a script.

The worker holds the other end of its stdin. When that closes, on purpose or because the worker is gone, the
engine's whole process group is killed. SIGTERM is passed on to the engine's first process only, which stops
its own children in order. When that process ends, whatever it left is killed.

Usage: engine_guard.py -- ARGV… stdout: one line, the engine's pid, which is its process group; stderr: what
the engine writes. Exit status: the engine's; 128 + signal when a signal ended it.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with_guard() -> None:
    """In the child, before exec: the guard itself may be killed too. And a crash must not write prompts to
    the disk: a limit of one byte stops core files, and programs that take cores from the kernel.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _end_group(engine: "subprocess.Popen[bytes]") -> int:
    """Kill what is left of the engine, take in every child (its orphans come to us), and return the
    engine's status.
    """
    with contextlib.suppress(ProcessLookupError):
        # Not reaped yet, so the group's number cannot belong to anybody else.
        os.killpg(engine.pid, signal.SIGKILL)
    status = engine.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            for orphan in _children():
                # One that had left the group.
                os.kill(orphan, signal.SIGKILL)
            os.waitpid(-1, 0)
    return status if status >= 0 else 128 - status


def _children() -> list[int]:
    """Our children now; none of them can vanish before we have waited for it."""
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat,
            ):
                # After the command's name, which may hold anything: state, then the parent.
                if int(stat.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def _has_ended(engine: "subprocess.Popen[bytes]") -> bool:
    return os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main(argv: list[str]) -> int:
    """Start the engine and stay until it has ended."""
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        # The group is the engine's own: a signal to it never reaches the guard.
        engine = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            start_new_session=True,
            preexec_fn=_die_with_guard,  # noqa: PLW1509  (this process has one thread)
        )
    except OSError as exc:
        os.write(2, f"{argv[0]}: error: cannot be started: {exc}\n".encode())
        return 127
    os.write(1, f"{engine.pid}\n".encode())
    while True:
        ready, _, _ = select.select([0, wakeup_read], [], [])
        if 0 in ready and not os.read(0, 64):
            return _end_group(engine)
        if wakeup_read in ready and signal.SIGTERM in os.read(wakeup_read, 64):
            engine.terminate()
        if _has_ended(engine):
            return _end_group(engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :]))
