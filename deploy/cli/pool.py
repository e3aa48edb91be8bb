"""`taas pool`: instances that are interchangeable, and what of them may be sold."""

from typing import Any

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.contract_terms import PART
from deploy.cli.output import (
    Columns,
    at,
    json_option,
    limit_option,
    moment,
    number,
    percent,
    print_fields,
    print_json,
    print_table,
    rounded,
    show,
)
from deploy.cli.pool_roll import roll


@click.group()
def pool() -> None:
    """Pools: list, show, set, autoscale, roll."""


pool.add_command(roll)


@pool.command("list")
@limit_option
@json_option
def list_all(limit: int | None, as_json: bool) -> None:
    """List pools, with their instances."""
    columns: Columns = {
        "POOL": "pool", "MODELS": "models", "INSTANCES": "instances", "READY": "ready", "RUNNING": "running",
        "WAITING": "waiting",
    }  # fmt: skip
    show(
        call_list("pools", limit=limit),
        as_json,
        columns,
        empty="no pools; a model brings one: `taas model add`",
    )


@pool.command("show")
@click.argument("name", metavar="POOL")
@json_option
def show_one(name: str, as_json: bool) -> None:
    """Show what POOL has, how much of it runs, how much is sold, and how much is free now."""
    _print(call("GET", "pools", name), as_json)


@pool.command("set")
@click.argument("name", metavar="POOL")
@click.option(
    "--instances",
    type=click.IntRange(min=0),
    metavar="N",
    help="Total machines, including those in other use.",
)
@click.option("--headroom", type=PART, metavar="PART", help="The part that is never sold, such as 10%.")
@click.option("--set-aside", metavar="UNITS", help="Units per second that the operator keeps for itself.")
@json_option
def set_fields(
    name: str, instances: int | None, headroom: str | None, set_aside: str | None, as_json: bool
) -> None:
    """Set how much of POOL may be sold. It is refused if it would break a signed contract.

    \b
    taas pool set llama-70b --instances 8 --headroom 10%
    """
    body = given(instances=instances, headroom=headroom, set_aside=set_aside)
    if not body:
        raise click.UsageError("nothing to change: give --instances, --headroom or --set-aside.")
    changed = call("PATCH", "pools", name, body=body)
    _print(changed, as_json)
    ready, here = changed["ready"], changed["instances"] - changed["taken"]
    if instances is not None and ready is not None and ready < here and not as_json:
        click.echo(f"\n{ready} of {here} are ready: what is signed beyond these is not there yet")


@pool.command()
@click.argument("name", metavar="POOL")
@click.option("--min", "least", type=click.IntRange(min=0), metavar="N", help="Never fewer instances.")
@click.option("--max", "most", type=click.IntRange(min=1), metavar="N", help="No more for load alone.")
@click.option("--off", is_flag=True, help="Scale it no more.")
@json_option
def autoscale(name: str, least: int | None, most: int | None, off: bool, as_json: bool) -> None:
    """Scale POOL: how many of its instances should run now, by contracts and load.

    Never fewer than what is signed needs, never more machines than the pool has. The number is in
    `taas_pool_desired_instances` for whatever starts engines; launchers of ours act on it. With `--min 0` all
    may be stopped; the first requests then wait for one to start. Without options: show it.

    \b
    taas pool autoscale llama-70b --min 1 --max 8
    taas pool autoscale llama-70b
    """
    if off and (least is not None or most is not None):
        raise click.UsageError("--off stands alone.")
    if not off and (least is None) != (most is None):
        raise click.UsageError("give --min and --max.")
    if off:
        call("DELETE", "autoscaling", name)
        click.echo(f"pool {name} is not scaled any more")
        return
    if least is None:
        scaled = call("GET", "autoscaling", name)
    else:
        scaled = call("PUT", "autoscaling", name, body={"min": least, "max": most})
    if as_json:
        print_json(scaled)
        return
    desired = "decided within seconds" if scaled["desired"] is None else scaled["desired"]
    print_fields({
        "pool": scaled["pool"], "min": scaled["min"], "max": scaled["max"], "desired": desired,
        "because of": scaled["why"] or "-", "since (UTC)": moment("decided_ms")(scaled),
    })  # fmt: skip


def _print(pool: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(pool)
        return
    measured = pool["units_per_instance"]
    print_fields({
        "pool": pool["pool"], "instances": pool["instances"], "ready": pool["ready"],
        "taken for other uses": pool["taken"],
        "units/s an instance": "not measured: taas "
                               "calibrate " + pool["pool"] if measured is None else rounded(measured),
        "headroom": percent(pool["headroom"]), "set aside, units/s": rounded(pool["set_aside"]),
        "may be sold, units/s": rounded(pool["capacity"]), "sold, units/s": rounded(pool["reserved"]),
        "free, units/s": rounded(pool["free"]), "contracts, signed or active": pool["contracts"],
    })  # fmt: skip
    if pool["shortfalls"]:
        click.echo("\nmore is signed than there is:")
        print_table(
            {"FROM (UTC)": at("from"), "UNTIL (UTC)": at("until"), "SHORT BY UNITS/S": number("units")},
            pool["shortfalls"],
        )
