"""`taas tenant`: who is billed."""

from typing import Any

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import seconds
from deploy.cli.output import Columns, json_option, limit_option, moment, print_fields, print_json, show

_COLUMNS: Columns = {
    "NAME": "name", "TENANT": "tenant", "KIND": "kind", "STATUS": "status", "ON DEMAND": "on_demand",
    "CREATED (UTC)": moment("created_ms"),
}  # fmt: skip


class _RedisDown(click.ParamType[dict[str, Any]]):
    """`refuse`, or `lease:REQUESTS:UNITS`."""

    name = "policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        match str(value).split(":"):
            case ["refuse"]:
                return {"policy": "refuse"}
            case ["lease", requests, units] if requests.isdecimal() and units.isdecimal():
                return {"policy": "local_lease", "requests": int(requests), "units": int(units)}
        raise click.BadParameter(f"{value!r} is neither `refuse` nor `lease:REQUESTS:UNITS`", ctx, param)


@click.group()
def tenant() -> None:
    """Tenants: create, list, show, suspend, resume, set, rename, archive."""


@tenant.command()
@click.argument("name")
@click.option("--internal", is_flag=True, help="One of the operator's own teams, which sees internal models.")
@click.option("--no-on-demand", is_flag=True, help="Served by contract only.")
@click.option(
    "--time-zone", metavar="ZONE", help="Where its days and months begin, as in Europe/Berlin. Default: UTC."
)
@json_option
def create(name: str, internal: bool, no_on_demand: bool, time_zone: str | None, as_json: bool) -> None:
    """Create the tenant NAME, with the project `default`.

    \b
    taas tenant create acme
    taas tenant create globex --time-zone Europe/Berlin
    taas tenant create search-team --internal
    """
    kind = "internal" if internal else "external"
    body = given(name=name, kind=kind, on_demand=not no_on_demand, time_zone=time_zone)
    made = call("POST", "tenants", body=body)
    if as_json:
        print_json(made)
    else:
        click.echo(f"tenant {made['name']} ({made['kind']}) is {made['tenant']}")
        click.echo("it has no limits yet: taas limit set --tenant " + made["name"])
        click.echo(f"next: taas key create --tenant {made['name']}")


@tenant.command("list")
@click.option("--all", "archived", is_flag=True, help="Include archived ones.")
@click.option("--name", help="Only names that contain this.")
@click.option("--status", type=click.Choice(["active", "suspended", "archived"]), help="In this status only.")
@limit_option
@json_option
def list_all(archived: bool, name: str | None, status: str | None, limit: int | None, as_json: bool) -> None:
    """List tenants."""
    show(
        call_list(
            "tenants", query={"archived": archived or None, "name": name, "status": status}, limit=limit
        ),
        as_json,
        _COLUMNS,
        empty="no tenants; create one with `taas tenant create NAME`",
    )


@tenant.command("show")
@click.argument("name")
@json_option
def show_one(name: str, as_json: bool) -> None:
    """Show the tenant NAME (or id)."""
    _print(call("GET", "tenants", name), as_json)


@tenant.command()
@click.argument("name")
@click.option(
    "--stop-streams",
    is_flag=True,
    help="Also stop its open requests; it is billed for what they have produced.",
)
@json_option
def suspend(name: str, stop_streams: bool, as_json: bool) -> None:
    """Refuse the tenant NAME from now on, within a second."""
    body = given(status="suspended", stop_streams=stop_streams or None)
    _print(call("PATCH", "tenants", name, body=body), as_json)


@tenant.command()
@click.argument("name")
@click.argument("new_name")
@json_option
def rename(name: str, new_name: str, as_json: bool) -> None:
    """Call the tenant NAME by NEW_NAME. Its id, keys and usage stay."""
    _print(call("PATCH", "tenants", name, body={"name": new_name}), as_json)


@tenant.command()
@click.argument("name")
@json_option
def archive(name: str, as_json: bool) -> None:
    """Refuse the tenant NAME as if suspended, and leave it out of lists. Its usage stays; `resume` takes
    it back.
    """
    _print(call("PATCH", "tenants", name, body={"status": "archived"}), as_json)


@tenant.command()
@click.argument("name")
@json_option
def resume(name: str, as_json: bool) -> None:
    """Serve the tenant NAME again, suspended or archived."""
    _print(call("PATCH", "tenants", name, body={"status": "active"}), as_json)


@tenant.command("set")
@click.argument("name")
@click.option("--on-demand/--no-on-demand", default=None, help="May it be served without a contract?")
@click.option(
    "--redis-down",
    type=_RedisDown(),
    help="While Redis is away: `refuse`, or `lease:REQUESTS:UNITS` over all gateways together.",
)
@click.option("--weight", type=click.IntRange(1, 1000), help="Its weight in fair sharing.")
@click.option("--time-zone", metavar="ZONE", help="Where its days and months begin, as in Europe/Berlin.")
@click.option(
    "--retain-answers",
    metavar="SPAN",
    help="How long answers to its requests with an Idempotency-Key are stored, up to 24h; 0s: they are not.",
)
@json_option
def set_fields(
    name: str,
    on_demand: bool | None,
    redis_down: dict[str, Any] | None,
    weight: int | None,
    time_zone: str | None,
    retain_answers: str | None,
    as_json: bool,
) -> None:
    """Change what the tenant NAME may.

    \b
    taas tenant set acme --no-on-demand
    taas tenant set acme --redis-down lease:100:50000
    taas tenant set acme --retain-answers 24h
    """
    body = given(on_demand=on_demand, redis_down=redis_down, weight=weight, time_zone=time_zone)
    if retain_answers is not None:
        body["retain_answers_s"] = seconds(retain_answers, "--retain-answers")
    if not body:
        raise click.UsageError(
            "nothing to change: give --on-demand, --no-on-demand, --redis-down, --weight, --time-zone or "
            "--retain-answers."
        )
    _print(call("PATCH", "tenants", name, body=body), as_json)


def _print(tenant: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(tenant)
        return
    policy = tenant["redis_down"]
    lease = policy["policy"] == "local_lease"
    shown = f"lease of {policy['requests']} requests, {policy['units']} units" if lease else "refuse"
    print_fields({
        "tenant": tenant["tenant"], "name": tenant["name"], "kind": tenant["kind"],
        "status": tenant["status"], "on demand": tenant["on_demand"], "weight": tenant["weight"],
        "time zone": tenant["time_zone"], "while Redis is gone": shown,
        "stores answers": f"for {tenant['retain_answers_s']} s" if tenant["retain_answers_s"] else "no",
        "created (UTC)": moment("created_ms")(tenant),
    })  # fmt: skip
