"""Instructions of the gateway a request and a streamed token, counted by valgrind's callgrind: `python -m
loadtest.bench.instructions`.

Seconds depend on the machine and on what else runs there; instructions hardly do, once what the gateway does
every second, also when it is idle, is taken off: a busy machine needs more seconds. Exits 1 when a figure is
more than 10 % above the one in `instructions.json`, which `--store` writes. Figures are those of one version
of Python: with another one nothing is held against them. Figures of more processes or tenants are only
printed.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from loadtest.bench.measure import Load, Tally, run_load
from loadtest.bench.shapes import TOKENS
from loadtest.bench.subjects import IN_TURN_MAX, Gateway, running_backend
from loadtest.children import cores, stop_children_on_sigterm

STORED: Final = Path(__file__).with_name("instructions.json")
TOLERANCE: Final = 1.10
# What is measured, with the load of it; a request's own cost is part of its tokens'.
_REQUEST: Final = Load("request", "s128x0", False, 1, 300)
_TOKEN: Final = Load("streamed_token", "u128x10", True, 4, 12)
# Several of each of the things that it does at regular intervals.
_IDLE_S: Final = 10.0
_WARM_UP: Final = (Load("warm", "s128x0", False, 4, 60), Load("warm", "u128x10", True, 4, 12))
_TOTAL: Final = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class Callgrind:
    """The counter of one process that runs under valgrind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # valgrind's own files are in the folder that the process starts in, which is this one.
        self.under = [
            "valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", "--trace-children=yes",
            f"--callgrind-out-file={folder}/callgrind.%p",
        ]  # fmt: skip

    def counted(self, pids: list[int], work: Callable[[], object]) -> tuple[int, float]:
        """The instructions of these processes while this is done, and how many seconds that takes."""
        for pid in pids:
            self._control(pid, "--zero")
            self._control(pid, "--instr=on")
        began = time.monotonic()
        work()
        took_s = time.monotonic() - began
        for pid in pids:
            self._control(pid, "--instr=off")
            self._control(pid, "--dump")
        return sum(map(self._last_dump, pids)), took_s

    def _last_dump(self, pid: int) -> int:
        newest = max(self._folder.glob(f"callgrind.{pid}.*"), key=lambda path: path.stat().st_mtime_ns)
        return max(int(total) for total in _TOTAL.findall(newest.read_text(errors="replace")))

    @staticmethod
    def _control(pid: int, what: str) -> None:
        subprocess.run(["callgrind_control", what, str(pid)], check=True, capture_output=True)


def count(processes: int, tenants: int) -> dict[str, int]:
    """Thousands of instructions: `request` (not streamed, one connection) and `streamed_token`. Raises
    RuntimeError when a request failed.
    """
    with tempfile.TemporaryDirectory(prefix="taas-instructions-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
        callgrind = Callgrind(folder)
        tally = Tally()
        with running_backend(folder) as ports:
            subject = Gateway(folder, ports, processes=processes, tenants=tenants, under=callgrind.under)
            try:
                print("starting the gateway under valgrind", file=sys.stderr)
                subject.start()
                for load in _WARM_UP:
                    run_load(subject, load, tally)
                if subject.callers > 1:
                    run_load(subject, replace(_WARM_UP[0], requests=subject.callers), tally)
                pids = subject.child.pids()
                idle, idle_s = callgrind.counted(pids, lambda: time.sleep(_IDLE_S))
                figures = {}
                for load, per in ((_REQUEST, _REQUEST.requests), (_TOKEN, _TOKEN.requests * TOKENS)):
                    all_of_it, took_s = callgrind.counted(pids, partial(run_load, subject, load, tally))
                    figures[load.name] = round((all_of_it - idle / idle_s * took_s) / per / 1000)
            finally:
                subject.stop()
    if tally.problems:
        raise RuntimeError("; ".join(tally.problems))
    return figures


def exceeded(counted: dict[str, int], stored: dict[str, int]) -> list[str]:
    """What is more than it may be, in words."""
    return [
        f"{name}: {figure} thousand instructions, {stored[name]} are stored"
        for name, figure in counted.items()
        if figure > stored[name] * TOLERANCE
    ]


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.instructions", description=__doc__)
    parser.add_argument(
        "--store", action="store_true", help="store the figures: from now on others are held against them"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the gateway (default 1)")
    parser.add_argument(
        "--tenants",
        type=int,
        default=1,
        metavar="N",
        help=f"of which up to {IN_TURN_MAX:,} send requests in turn (default 1)",
    )
    arguments = parser.parse_args()
    is_usual = (arguments.processes, arguments.tenants) == (1, 1)
    if arguments.store and not is_usual:
        parser.error("figures are stored for one process and one tenant")
    stop_children_on_sigterm()
    os.sched_setaffinity(0, {cores()[0]})  # and so for every child that is not put elsewhere
    counted = count(arguments.processes, arguments.tenants)
    for name, figure in counted.items():
        print(f"{name}: {figure} thousand instructions")
    if not is_usual:
        return 0
    version = platform.python_version()
    if arguments.store:
        STORED.write_text(json.dumps({"python": version} | counted, indent=2) + "\n")
        return 0
    stored = json.loads(STORED.read_text())
    if stored.pop("python") != version:
        print(f"nothing is stored for Python {version}")
        return 0
    wrong = exceeded(counted, stored)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
