"""`python -m loadtest.scenarios [NAME…] [--seconds N] [--json]`: run, print, and add to
`.taas/scenarios.json`. Exits 1 when a promise was missed, 2 when a scenario could not run.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import httpx
import orjson

from loadtest.children import DidNotStart, stop_children_on_sigterm
from loadtest.scenarios import cost, enforcement, fairness, guarantee, lending, reclaim, vtc
from loadtest.scenarios.result import Result, show, write
from loadtest.settings import HomeSettings

SCENARIOS: dict[str, Callable[[float], list[Result]]] = {
    "guarantee": guarantee.run,
    "enforcement": enforcement.run,
    "fairness": fairness.run,
    "lending": lending.run,
    "reclaim": reclaim.run,
    **{suite.name: partial(vtc.run, suite) for suite in vtc.SUITES},
    "guarantee-here": guarantee.run_here,
    "cpu-tenants": cost.tenants,
    "cpu-waiting": cost.waiting,
}


# It needs an installation that runs and is calibrated, and loads it.
BY_NAME_ONLY = frozenset({"guarantee-here"})


class Unknown(Exception):
    """No scenario has this name; the message lists those there are."""


def chosen(names: Sequence[str]) -> list[str]:
    """The scenarios meant, in their order: a name, or the first word of several (`vtc`, `cpu`); none given
    is all. Raises Unknown.
    """
    for name in names:
        if not any(_meant(name, scenario) for scenario in SCENARIOS):
            raise Unknown(
                f"There is no scenario {name!r}. There are: {', '.join(SCENARIOS)}; `vtc` and `cpu` mean "
                "all of theirs."
            )
    return [
        scenario
        for scenario in SCENARIOS
        if (not names and scenario not in BY_NAME_ONLY) or any(_meant(name, scenario) for name in names)
    ]


def _meant(name: str, scenario: str) -> bool:
    return name == scenario or (name == scenario.partition("-")[0] and scenario not in BY_NAME_ONLY)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.scenarios", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each measures (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, default=HomeSettings().home / "scenarios.json")
    return parser.parse_args(arguments)


def main() -> int:
    """Run them one after the other; what one found is written before the next begins."""
    arguments = parse()
    stop_children_on_sigterm()
    try:
        names = chosen(arguments.names)
    except Unknown as unknown:
        print(unknown, file=sys.stderr)
        return 2
    found: list[Result] = []
    broken = False
    for name in names:
        print(f"running {name}", file=sys.stderr)
        try:
            results = SCENARIOS[name](arguments.seconds)
        except (DidNotStart, httpx.HTTPError) as exc:
            print(f"{name} could not run: {exc}", file=sys.stderr)
            broken = True
            continue
        write(results, arguments.out)
        found += results
        if not arguments.json:
            for result in results:
                show(result)
    if arguments.json:
        print(
            orjson.dumps(
                {result.name: result.as_json() for result in found}, option=orjson.OPT_INDENT_2
            ).decode()
        )
    return 2 if broken else 0 if all(result.met for result in found) else 1


if __name__ == "__main__":
    sys.exit(main())
