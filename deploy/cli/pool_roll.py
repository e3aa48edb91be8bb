"""`taas pool roll`: every engine of a pool is started again, one after the other."""

import time
from collections.abc import Sequence
from typing import Any, Final

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call, call_list
from deploy.cli.moments import seconds
from deploy.cli.output import json_option, print_json

_POLL_S: Final = 0.5
# Gateways read the registry twice a second. Until all of them know the new engine, the next one stays.
_KNOWN_AFTER_S: Final = 2.0


@click.command()
@click.argument("name", metavar="POOL")
@click.option(
    "--drain",
    default="10min",
    show_default=True,
    metavar="SPAN",
    help="How long the requests of an instance may take to end. Then they are cut off, and resumed elsewhere "
    "where that is possible.",
)
@click.option(
    "--timeout",
    default="1h",
    show_default=True,
    metavar="SPAN",
    help="How long an engine may take to be ready again, beside its draining.",
)
@click.option("--alone", is_flag=True, help="Also where nothing else serves a model meanwhile.")
@yes_option
@json_option
def roll(name: str, drain: str, timeout: str, alone: bool, yes: bool, as_json: bool) -> None:
    """Start every engine of POOL again, one after the other: it gets no new requests, those in flight end, it
    is started from what catalogue and disk have now, and when it is ready the next one follows.

    No request fails, because another instance serves meanwhile. It stops at the first engine that is not
    ready again. Instances that were added by hand are left alone.

    \b
    taas pool roll llama-70b --drain 5min
    """
    drain_s, timeout_s = seconds(drain, "--drain"), seconds(timeout, "--timeout")
    there = _instances(name)
    rolled = [row for row in there if row["added"] == "by its worker" and row["status"] != "down"]
    if not rolled:
        raise click.ClickException(f"no worker serves in pool {name}")
    _check(there, rolled, alone=alone)
    if not as_json:
        left = [row["instance"] for row in there if row["added"] == "by hand" and not row["removed"]]
        click.echo(f"one after the other: {', '.join(row['instance'] for row in rolled)}")
        if left:
            click.echo(f"left alone, because added by hand: {', '.join(left)}")
    require_answerable(yes=yes, as_json=as_json)
    confirm(f"start {len(rolled)} engines again?", yes=yes)
    done = []
    for number, row in enumerate(rolled):
        if number:
            time.sleep(_KNOWN_AFTER_S)
            _check(_instances(name), [row], alone=alone)
        took_s = _restart(name, row, drain_s, timeout_s, quiet=as_json)
        done.append({"instance": row["instance"], "seconds": round(took_s, 1)})
        if not as_json:
            click.echo(f"{row['instance']}: ready after {took_s:.0f} s ({number + 1} of {len(rolled)})")
    if as_json:
        print_json({"pool": name, "restarted": done})


def _instances(pool: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = call_list("instances", query={"pool": pool})["data"]
    return rows


def _check(there: Sequence[dict[str, Any]], rolled: Sequence[dict[str, Any]], *, alone: bool) -> None:
    """Raises ClickException if one of them is not ready, or nothing else serves its model."""
    for row in rolled:
        now = next((each for each in there if each["instance"] == row["instance"]), None)
        status = "gone" if now is None else now["status"]
        if status != "ready":
            raise click.ClickException(f"{row['instance']} is {status}: wait until it is ready")
        others = [
            each
            for each in there
            if each["model"] == row["model"]
            and each["instance"] != row["instance"]
            and each["status"] == "ready"
        ]
        if not others and not alone:
            raise click.ClickException(
                f"nothing else serves {row['model']} while {row['instance']} starts: start another worker, "
                "or give --alone and lose requests"
            )


def _restart(pool: str, row: dict[str, Any], drain_s: int, timeout_s: int, *, quiet: bool) -> float:
    """Order it and wait until it is ready in another epoch; the seconds that this took. Raises
    ClickException.
    """
    began, told, instance = time.monotonic(), "", row["instance"]
    old = call("POST", "instances", instance, "restart", body={"drain_seconds": drain_s})["epoch"]
    while True:
        now = next((each for each in _instances(pool) if each["instance"] == instance), None)
        if now is not None and now["status"] == "ready" and now["epoch"] != old:
            return time.monotonic() - began
        status = "gone" if now is None else now["status"]
        if status not in {told, "ready"} and not quiet:
            running = 0 if now is None else now["load"]["running"]
            click.echo(f"{instance}: {status}" + (f", {running} requests run" if running else ""))
        told = status
        if now is not None and status == "down" and now["epoch"] != old:
            raise click.ClickException(
                f"the engine of {instance} did not start again; its worker goes on trying and says why. The "
                "others were left as they are: mend it, then run this again."
            )
        if time.monotonic() - began > drain_s + timeout_s:
            raise click.ClickException(
                f"{instance} is {status} and not ready again after {drain_s + timeout_s} s; the others were "
                "left as they are. See its worker's output, then run this again."
            )
        time.sleep(_POLL_S)
