"""`taas key`: what callers authenticate with."""

import click

from deploy.cli.connection import call, given
from deploy.cli.output import Columns, json_option, moment, print_json, show

_COLUMNS: Columns = {
    "KEY ID": "key_id", "KEY": "display", "NAME": "name", "TENANT": "tenant_name", "PROJECT": "project_name", "STATUS": "status",
    "EXPIRES (UTC)": moment("expires_at_ms"), "CREATED (UTC)": moment("created_ms"),
}  # fmt: skip


@click.group()
def key() -> None:
    """API keys: create, list, revoke."""


@key.command()
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@click.option("--project", help="Name or id of its project. Default: `default`.")
@click.option("--name", help="What people call it.")
@click.option("--expires", metavar="WHEN", help="ISO 8601, such as 2027-01-31 (UTC). Default: never.")
@json_option
def create(tenant: str, project: str | None, name: str | None, expires: str | None, as_json: bool) -> None:
    """Create an API key. It is shown now and never again.

    \b
    taas key create --tenant acme
    export OPENAI_API_KEY=$(taas key create --tenant acme --json | jq -r .key)
    """
    made = call("POST", "keys", body=given(tenant=tenant, project=project, name=name, expires_at_ms=expires))
    if as_json:
        print_json(made)
    else:
        click.echo(made["key"])
        click.echo(
            f"{made['key_id']} of {made['tenant_name']}/{made['project_name']}. Keep the key: it is not shown again.",
            err=True,
        )


@key.command("list")
@click.option("--tenant", help="Of this tenant only.")
@json_option
def list_all(tenant: str | None, as_json: bool) -> None:
    """List API keys, by their last four characters."""
    answer = call("GET", "keys", query={"tenant": tenant})
    show(answer, as_json, _COLUMNS, empty="no keys; create one with `taas key create --tenant NAME`")


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
