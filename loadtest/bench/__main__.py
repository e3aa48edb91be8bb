"""`python -m loadtest.bench`: measure, print, and write `.taas/bench.json`. Exits 1 when a request failed
or a bill is wrong.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.bench.measure import WARM_UP, Load, Tally, run_load, run_round
from loadtest.bench.report import Round, show, summarize, write
from loadtest.bench.subjects import SUBJECTS, Subject, running_backend
from loadtest.children import cores, stop_children_on_sigterm
from loadtest.settings import HomeSettings

_MB = 1024 * 1024
# What may be added over a long run, for caches that fill and the allocator's own slack.
_MEMORY_GROWTH_MB_MAX = 8


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="each subject is measured so often, in turn (default 3)"
    )
    parser.add_argument(
        "--only", choices=SUBJECTS, action="append", help="measure this one only; can be given again"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="how many requests, relative to the usual (default 1)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=0,
        metavar="REQUESTS",
        help="then send so many more and compare RSS before and after",
    )
    parser.add_argument("--out", type=Path, default=HomeSettings().home / "bench.json")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def running(names: list[str], folder: Path) -> Iterator[list[Subject]]:
    """The backend and all subjects, up and warm; stopped in the end whatever happens."""
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(running_backend(folder))
        subjects = []
        for name in names:
            own = folder / name
            own.mkdir(mode=0o755)
            subject = SUBJECTS[name](own, ports)
            print(f"starting {name}", file=sys.stderr)
            stack.callback(subject.stop)
            subject.start()
            subjects.append(subject)
        yield subjects


def measure(subjects: list[Subject], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All rounds of all subjects in turn, then memory, then the bill."""
    tallies = {subject.name: Tally() for subject in subjects}
    rounds: dict[str, list[Round]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        run_load(subject, WARM_UP, tallies[subject.name])
    for number in range(arguments.rounds):
        for subject in subjects:
            print(f"round {number + 1} of {arguments.rounds}: {subject.name}", file=sys.stderr)
            rounds[subject.name].append(run_round(subject, tallies[subject.name], arguments.scale))
    results = {}
    for subject in subjects:
        tally = tallies[subject.name]
        result: dict[str, Any] = summarize(rounds[subject.name]) if arguments.rounds else {}
        result["rss_mb"] = round(subject.child.rss_bytes() / _MB, 1)
        if arguments.memory:
            result["memory"] = _memory(subject, arguments.memory, tally)
        wrong = subject.check(tally.requests, tally.output_tokens)
        result["problems"] = tally.problems + ([wrong] if wrong else [])
        results[subject.name] = result
    return results


def _memory(subject: Subject, requests: int, tally: Tally) -> dict[str, Any]:
    print(f"memory over {requests} requests: {subject.name}", file=sys.stderr)
    before = subject.child.rss_bytes()
    run_load(subject, Load("memory", "s128x0", False, 64, requests), tally)
    grown_mb = (subject.child.rss_bytes() - before) / _MB
    print(
        f"{subject.name}: RSS {before / _MB:.1f} MB before, {grown_mb:+.1f} MB after {requests} requests",
        file=sys.stderr,
    )
    if grown_mb > _MEMORY_GROWTH_MB_MAX:
        tally.problems.append(f"memory: RSS grew by {grown_mb:.1f} MB over {requests} requests")
    return {"requests": requests, "before_mb": round(before / _MB, 1), "grown_mb": round(grown_mb, 1)}


def main() -> int:
    """Run it all; the exit status."""
    arguments = parse()
    stop_children_on_sigterm()
    os.sched_setaffinity(0, {cores()[0]})  # and so for every child that is not put elsewhere
    with tempfile.TemporaryDirectory(prefix="taas-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
        with running(arguments.only or list(SUBJECTS), folder) as subjects:
            results = measure(subjects, arguments)
    if arguments.rounds:
        show(results)
    write(results, arguments.out)
    print(f"written to {arguments.out}", file=sys.stderr)
    return 1 if any(result["problems"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
