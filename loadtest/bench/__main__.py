"""`python -m loadtest.bench`: measure, print, and write `.taas/bench.json`. Exits 1 when a request failed
or a bill is wrong.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtest.bench.measure import LOADS, PLAIN_LOADS, WARM_UP, Load, Tally, run_load, run_round
from loadtest.bench.report import Round, show, show_problems, summarize, write
from loadtest.bench.scaling import comparisons, show_comparison
from loadtest.bench.subjects import IN_TURN_MAX, SUBJECTS, Subject, running_backend
from loadtest.children import cores, stop_children_on_sigterm
from loadtest.settings import HomeSettings

MakeSubject = Callable[[Path, list[int]], Subject]

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
        "--processes",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="compare CPU per request of gateways with so many processes, such as 1 2 4, and measure nothing "
        "else",
    )
    parser.add_argument(
        "--tenants",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help=f"compare it for so many tenants, such as 10 100000; up to {IN_TURN_MAX:,} of them "
        "send requests in turn, at first one each that is not measured",
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
def running(makers: Mapping[str, MakeSubject], folder: Path) -> Iterator[dict[str, Subject]]:
    """The backend and all subjects, by name; stopped in the end whatever happens."""
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(running_backend(folder))
        subjects = {}
        for number, (name, make) in enumerate(makers.items()):
            own = folder / str(number)
            own.mkdir(mode=0o755)
            subject = subjects[name] = make(own, ports)
            print(f"starting {name}", file=sys.stderr)
            stack.callback(subject.stop)
            subject.start()
        yield subjects


def measure(
    subjects: dict[str, Subject], arguments: argparse.Namespace, loads: tuple[Load, ...]
) -> dict[str, dict[str, Any]]:
    """All rounds of all subjects in turn, then memory, then the bill."""
    tallies = {name: Tally() for name in subjects}
    rounds: dict[str, list[Round]] = {name: [] for name in subjects}
    for name, subject in subjects.items():
        print(f"warming up {name}", file=sys.stderr)
        warm_up = replace(WARM_UP, requests=max(WARM_UP.requests, subject.callers))
        run_load(subject, warm_up, tallies[name])
    for number in range(arguments.rounds):
        for name, subject in subjects.items():
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            rounds[name].append(run_round(subject, tallies[name], arguments.scale, loads))
    results = {}
    for name, subject in subjects.items():
        tally = tallies[name]
        result: dict[str, Any] = summarize(rounds[name]) if arguments.rounds else {}
        result["rss_mb"] = round(subject.child.rss_bytes() / _MB, 1)
        if arguments.memory:
            result["memory"] = _memory(subject, arguments.memory, tally)
        wrong = subject.check(tally.requests, tally.output_tokens)
        result["problems"] = tally.problems + ([wrong] if wrong else [])
        results[name] = result
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
    compared = comparisons(arguments.processes, arguments.tenants)
    makers: dict[str, MakeSubject] = {
        scale.name: scale.make for comparison in compared for scale in comparison.scales
    } or {name: SUBJECTS[name] for name in arguments.only or SUBJECTS}
    os.sched_setaffinity(0, {cores()[0]})  # and so for every child that is not put elsewhere
    with tempfile.TemporaryDirectory(prefix="taas-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
        with running(makers, folder) as subjects:
            results = measure(subjects, arguments, PLAIN_LOADS if compared else LOADS)
    if arguments.rounds:
        for comparison in compared:
            show_comparison(comparison, results)
        if not compared:
            show(results)
        show_problems(results)
    write(results, arguments.out)
    print(f"written to {arguments.out}", file=sys.stderr)
    return 1 if any(result["problems"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
