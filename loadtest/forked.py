"""Programs of the product as processes of their own that start with their imports done.

`python -m gateway` needs a second of CPU before its first line of work, most of it for imports. The tests
start some hundreds of such programs, and a run of faults starts again what it kills. One process imports them
once, and each program is a fork of it.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

from loadtest.settings import replace_environment

_IMPORTED = [
    "loadtest.loading",
    "gateway.app",
    "gateway.process.serve",
    "billing.process",
    "billing.batch.process",
    "serving.launch",
    "serving.worker",
    "loadtest.engine.server",
    "loadtest.provider.provider",
    # What is imported by the first client of httpx, the first loop of a server, and the first connection.
    "httpcore",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvloop",
    "encodings.idna",
    "loadtest.frozen",
]


class ForkedProgram:
    """A running program, asked and ended as with `subprocess.Popen`. `folder`: where it starts, if not
    here.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self._module = module
        # Daemonic: ended with this process, which would otherwise wait for it.
        self._process = _context().Process(
            target=_run,
            args=(module, tuple(arguments), dict(environment), str(folder or os.getcwd()), log),
            daemon=True,
        )
        with _without_main():
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(self._module, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Program = ForkedProgram | subprocess.Popen[bytes]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


@contextmanager
def _without_main() -> Iterator[None]:
    """A child would otherwise import what this process was started as: pytest."""
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = ours


def _run(
    module: str, arguments: tuple[str, ...], environment: dict[str, str], folder: str, log: Path | None
) -> None:
    """In the fork: what Python would have found in a process that was started so."""
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    os.setsid()  # so that Ctrl-C is for this process, which then ends the program
    os.chdir(folder)
    replace_environment(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
