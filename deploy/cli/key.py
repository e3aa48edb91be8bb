"""`taas key`: what callers authenticate with."""

from typing import Any

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import AHEAD, ahead, seconds
from deploy.cli.output import (
    Columns,
    json_option,
    limit_option,
    moment,
    print_fields,
    print_json,
    print_table,
    show,
)

_models = click.option(
    "--model",
    "models",
    multiple=True,
    metavar="MODEL",
    help="It may only ask for this model; repeat it for more.",
)

_COLUMNS: Columns = {
    "KEY ID": "key_id", "KEY": "display", "NAME": "name", "TENANT": "tenant_name", "PROJECT": "project_name",
    "STATUS": "status", "MODELS": lambda row: ", ".join(row["models"]) if row["models"] else "all",
    "EXPIRES (UTC)": moment("expires_at_ms"), "LAST USED (UTC)": moment("last_used_ms"),
    "CREATED (UTC)": moment("created_ms"),
}  # fmt: skip


_USED: Columns = {
    "USED BY": "of", "REQUESTS": "requests", "PROMPT": lambda row: row["tokens"]["prompt"],
    "OUTPUT": lambda row: row["tokens"]["output"], "USD": "amount",
}  # fmt: skip
_BUDGETS: Columns = {
    "BUDGET OF": "of", "PER": "per", "USD": "usd", "SPENT": "spent", "LEFT": "left",
    "UNTIL (UTC)": moment("until_ms"), "RUNS OUT (UTC)": moment("runs_out_ms"),
}  # fmt: skip


@click.group()
def key() -> None:
    """API keys: create, list, show, usage, set, rotate, revoke."""


@key.command()
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@click.option("--project", help="Name or id of its project. Default: `default`.")
@click.option("--name", help="A name for people.")
@click.option("--expires", metavar="WHEN", help=f"{AHEAD}. Default: never.")
@_models
@json_option
def create(
    tenant: str,
    project: str | None,
    name: str | None,
    expires: str | None,
    models: tuple[str, ...],
    as_json: bool,
) -> None:
    """Create an API key. It is only shown now.

    \b
    taas key create --tenant acme
    taas key create --tenant acme --name ci --expires 90d --model llama-70b
    export OPENAI_API_KEY=$(taas key create --tenant acme --json | jq -r .key)
    """
    until = ahead(expires, "--expires")
    fields = given(tenant=tenant, project=project, name=name, expires_at_ms=until, models=list(models))
    _print_made(call("POST", "keys", body=fields), as_json)


@key.command("list")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--project", help="Of this project of the tenant only.")
@click.option("--status", type=click.Choice(["active", "expired", "revoked"]), help="In this status only.")
@limit_option
@json_option
def list_all(
    tenant: str | None, project: str | None, status: str | None, limit: int | None, as_json: bool
) -> None:
    """List API keys, by their last four characters."""
    query = {"tenant": tenant, "project": project, "status": status}
    answer = call_list("keys", query=query, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no keys; create one with `taas key create --tenant NAME`")


@key.command("show")
@click.argument("key_id")
@json_option
def show_one(key_id: str, as_json: bool) -> None:
    """Show the key KEY_ID: its tenant, its models, its last use."""
    _print(call("GET", "keys", key_id), as_json)


@key.command()
@click.argument("key_id", metavar="KEY_ID")
@json_option
def usage(key_id: str, as_json: bool) -> None:
    """What KEY_ID, its project and its tenant have used this month, and the budgets that cover it."""
    found = call("GET", "keys", key_id, "usage")
    if as_json:
        print_json(found)
        return
    used = [{"of": of, **row} for of, row in found["used"].items()]
    print_table(_USED, used)
    if found["budgets"]:
        click.echo()
        print_table(_BUDGETS, found["budgets"])


@key.command("set")
@click.argument("key_id")
@click.option("--name", help="A name for people.")
@click.option("--expires", metavar="WHEN|never", help=f"{AHEAD}; or never.")
@_models
@click.option("--any-model", is_flag=True, help="It may ask for all models of its tenant again.")
@json_option
def set_fields(
    key_id: str,
    name: str | None,
    expires: str | None,
    models: tuple[str, ...],
    any_model: bool,
    as_json: bool,
) -> None:
    """Change the name, the expiry or the models of the key KEY_ID; what is not given stays.

    \b
    taas key set key_0f3a… --expires 30d
    taas key set key_0f3a… --model llama-70b --model embed-small
    """
    if models and any_model:
        raise click.UsageError("--model and --any-model exclude each other.")
    body: dict[str, Any] = given(name=name, models=list(models))
    if any_model:
        body["models"] = None
    if expires is not None:
        body["expires_at_ms"] = None if expires == "never" else ahead(expires, "--expires")
    if not body:
        raise click.UsageError("nothing to change: give --name, --expires, --model or --any-model.")
    _print(call("PATCH", "keys", key_id, body=body), as_json)


@key.command()
@click.argument("key_id")
@click.option(
    "--overlap",
    metavar="SPAN",
    default="0s",
    help="How long the old key still works, such as 24h. Default: not at all.",
)
@json_option
def rotate(key_id: str, overlap: str, as_json: bool) -> None:
    """Make a new key in place of KEY_ID, with the same rights and limits. The new one is
    only shown now.

    \b
    taas key rotate key_0f3a… --overlap 24h
    """
    made = call("POST", "keys", key_id, "rotate", body={"overlap_seconds": seconds(overlap, "--overlap")})
    _print_made(made, as_json)
    if not as_json:
        click.echo(
            f"{made['old']['key_id']} works until {moment('expires_at_ms')(made['old'])} (UTC).", err=True
        )


@key.command()
@click.argument("key_id")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """Revoke the key KEY_ID for good, within a second on every gateway."""
    gone = call("DELETE", "keys", key_id)
    if as_json:
        print_json(gone)
    else:
        click.echo(f"{gone['key_id']} ({gone['display']}) of {gone['tenant_name']} is revoked")


def _print_made(made: dict[str, Any], as_json: bool) -> None:
    if made["key"] is None:
        raise click.ClickException(
            f"{made['key_id']} was made, but the answer that showed the key was lost on its way. It is not "
            "shown again: "
            f"`taas key revoke {made['key_id']}`, and make another."
        )
    if as_json:
        print_json(made)
        return
    click.echo(made["key"])
    click.echo(
        f"{made['key_id']} of {made['tenant_name']}/{made['project_name']}. Keep the key: it is not shown "
        "again.",
        err=True,
    )


def _print(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    print_fields({
        "key": key["key_id"], "ends in": key["display"], "name": key["name"], "tenant": key["tenant_name"],
        "project": key["project_name"], "status": key["status"],
        "models": "all of its tenant" if key["models"] is None else key["models"],
        "expires (UTC)": moment("expires_at_ms")(key) or "never",
        "last used (UTC)": moment("last_used_ms")(key) or "never", "created (UTC)": moment("created_ms")(key),
    })  # fmt: skip
