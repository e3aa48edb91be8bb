"""`make loadtest`: drive streams at an open arrival rate, then hold every bill against what was received.

Exit status: 0 all bills agree, 1 some do not or nothing was served, 2 the target is not there or not ours to
load.
"""

import argparse
import ipaddress
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.settings import TargetSettings, read_target
from loadtest.workload import Mix


class CannotRun(Exception):
    """The load will not be sent; the message says why."""


def parse(target: TargetSettings, arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is not given comes from the environment or `.taas/demo.env`."""
    parser = argparse.ArgumentParser(
        prog="make loadtest ARGS=…",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=float, default=2.0, help="calls a second, as a Poisson process")
    load.add_argument("--duration", type=float, default=30.0, help="seconds during which calls are made")
    load.add_argument(
        "--streams",
        type=int,
        default=2000,
        help="streams open at once; calls beyond are counted and not made",
    )
    load.add_argument(
        "--seed", type=int, default=1, help="the same seed makes the same calls at the same times"
    )
    mix = parser.add_argument_group("mix")
    mix.add_argument("--long", type=float, default=0.15, help="share of calls with long prompts")
    mix.add_argument(
        "--shared", type=float, default=0.25, help="share of calls that share a long prefix with others"
    )
    mix.add_argument(
        "--disconnects", type=float, default=0.10, help="share of callers who go away in the middle"
    )
    mix.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        help="most output tokens that a call asks for; the least is an eighth of it",
    )
    where = parser.add_argument_group("target")
    where.add_argument("--base-url", default=target.base_url, help="as OPENAI_BASE_URL")
    where.add_argument("--api-key", default=target.api_key.get_secret_value(), help=argparse.SUPPRESS)
    where.add_argument("--model", default=target.model, help="as TAAS_MODEL")
    where.add_argument(
        "--no-receipts", action="store_true", help="do not compare bills: for servers that write none"
    )
    where.add_argument(
        "--i-own-this-host", action="store_true", help="allow a target that is not on this machine"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args(arguments)


def check_target(arguments: argparse.Namespace) -> None:
    """Raises CannotRun unless the target is named, and is this machine or the caller's own."""
    for name, value in (
        ("OPENAI_BASE_URL", arguments.base_url),
        ("OPENAI_API_KEY", arguments.api_key),
        ("TAAS_MODEL", arguments.model),
    ):
        if not value:
            raise CannotRun(
                f"{name} is not set, and .taas/demo.env does not say it either. Run `make up` first."
            )
    host = urlsplit(arguments.base_url).hostname
    if host is None:
        raise CannotRun(f"{arguments.base_url!r} is no URL.")
    if not arguments.i_own_this_host and not _is_loopback(host):
        raise CannotRun(
            f"{host} is not this machine. A load test may be sent elsewhere with --i-own-this-host only."
        )


def _is_loopback(host: str) -> bool:
    """Whether every address of a name is on loopback."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as exc:
        raise CannotRun(f"{host}: {exc}") from exc
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def run(arguments: argparse.Namespace) -> int:
    """Drive, compare, report."""
    # Here, not above: importing locust replaces the standard library's blocking calls.
    from locust.env import Environment

    from loadtest import report
    from loadtest.receipts import compare
    from loadtest.users import Plan, make_user

    mix = Mix(
        model=arguments.model,
        long_share=arguments.long,
        shared_share=arguments.shared,
        disconnect_share=arguments.disconnects,
        output_tokens=(max(1, arguments.max_tokens // 8), arguments.max_tokens),
    )
    plan = Plan(
        base_url=arguments.base_url,
        api_key=arguments.api_key,
        mix=mix,
        rate_per_s=arguments.rate,
        duration_s=arguments.duration,
        streams_max=arguments.streams,
        seed=arguments.seed,
    )
    environment = Environment(user_classes=[])
    runner = environment.create_local_runner()
    environment.user_classes = [make_user(plan, runner.quit)]
    began = time.monotonic()
    print(
        f"{arguments.rate:g} calls a second for {arguments.duration:g} s to {arguments.base_url}, model "
        f"{arguments.model}",
        file=sys.stderr,
    )
    runner.start(1, spawn_rate=1)
    runner.greenlet.join()
    seconds = time.monotonic() - began
    comparison = None
    if not arguments.no_receipts:
        root = arguments.base_url.rstrip("/").removesuffix("/v1")
        comparison = compare(plan.outcomes, root, arguments.api_key)
    summary = report.summarize(plan.outcomes, plan.not_sent, seconds, comparison)
    report.show(summary)
    if arguments.json:
        report.write(summary, arguments.json)
    served = summary["endings"]["complete"] + summary["endings"]["left"]
    return 1 if not served or (comparison is not None and comparison.disagreements) else 0


def main() -> int:
    """The command line."""
    arguments = parse(read_target())
    try:
        check_target(arguments)
    except CannotRun as refused:
        print(refused, file=sys.stderr)
        return 2
    return run(arguments)
