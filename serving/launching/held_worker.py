"""A worker as a child process that does not outlive its parent, not even after kill -9: the guard of engines
holds it, too.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.engine_process import GUARD


class HeldWorker:
    """`python -m serving WORDS` with its output in a file. Closing its pipe kills it; so does our own end."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], log: Path, *, module: str = "serving"
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        worker = [sys.executable, "-m", module, *words]
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), "--", *worker],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._guard.poll()

    def wait(self) -> None:
        """Until it has ended."""
        self._guard.wait()

    def drain(self) -> None:
        """SIGTERM."""
        if self._guard.poll() is None:
            self._guard.terminate()

    def end(self) -> None:
        """Kill it and its engine, and wait until that is done."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
