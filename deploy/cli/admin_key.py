"""`taas admin-key`: what people and programs that run the installation authenticate with."""

from typing import Any, Final

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import AHEAD, ahead, seconds
from deploy.cli.output import Columns, json_option, limit_option, moment, print_fields, print_json, show

_ROLES: Final = ("operator", "finance", "auditor", "admin", "member", "billing", "viewer")
_COLUMNS: Columns = {
    "KEY ID": "key_id", "KEY": "display", "NAME": "name", "ROLE": "role", "TENANT": "tenant_name",
    "STATUS": "status", "EXPIRES (UTC)": moment("expires_at_ms"), "LAST USED (UTC)": moment("last_used_ms"),
    "CREATED (UTC)": moment("created_ms"),
}  # fmt: skip


@click.group()
def admin_key() -> None:
    """Admin keys and their roles: create, list, show, rotate, revoke."""


@admin_key.command()
@click.option("--role", type=click.Choice(_ROLES), required=True, help="What it may do; see above.")
@click.option("--tenant", help="Name or id of the tenant, for a role within one.")
@click.option("--name", help="A name for people.")
@click.option("--expires", metavar="WHEN", help=f"{AHEAD}. Default: never.")
@json_option
def create(role: str, tenant: str | None, name: str | None, expires: str | None, as_json: bool) -> None:
    """Create an admin key. It is only shown now.

    Of the whole installation: an operator runs it, finance sets prices and budgets, an auditor reads all and
    changes nothing. Of one tenant (--tenant): its admin, a member (API keys), billing (budgets), a viewer.

    \b
    taas admin-key create --role finance --name jane --expires 90d
    taas admin-key create --tenant acme --role admin
    export TAAS_ADMIN_KEY=$(taas admin-key create --role auditor --json | jq -r .key)
    """
    fields = given(role=role, tenant=tenant, name=name, expires_at_ms=ahead(expires, "--expires"))
    _print_made(call("POST", "admin-keys", body=fields), as_json)


@admin_key.command("list")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--role", type=click.Choice(_ROLES), help="Of this role only.")
@click.option("--status", type=click.Choice(["active", "expired", "revoked"]), help="In this status only.")
@limit_option
@json_option
def list_all(
    tenant: str | None, role: str | None, status: str | None, limit: int | None, as_json: bool
) -> None:
    """List admin keys, by their last four characters."""
    query = {"tenant": tenant, "role": role, "status": status}
    answer = call_list("admin-keys", query=query, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no admin keys but the one of the settings")


@admin_key.command("show")
@click.argument("key_id")
@json_option
def show_one(key_id: str, as_json: bool) -> None:
    """Show the admin key KEY_ID: its role, its last use."""
    key = call("GET", "admin-keys", key_id)
    if as_json:
        print_json(key)
        return
    print_fields({
        "key": key["key_id"], "ends in": key["display"], "name": key["name"], "role": key["role"],
        "tenant": key["tenant_name"] or "all", "status": key["status"],
        "expires (UTC)": moment("expires_at_ms")(key) or "never",
        "last used (UTC)": moment("last_used_ms")(key) or "never", "created (UTC)": moment("created_ms")(key),
    })  # fmt: skip


@admin_key.command()
@click.argument("key_id")
@click.option(
    "--overlap", metavar="SPAN", default="0s",
    help="How long the old key still works, such as 24h. Default: not at all.",
)  # fmt: skip
@json_option
def rotate(key_id: str, overlap: str, as_json: bool) -> None:
    """Make a new key in place of KEY_ID, with the same role. The new one is only shown now."""
    body = {"overlap_seconds": seconds(overlap, "--overlap")}
    _print_made(call("POST", "admin-keys", key_id, "rotate", body=body), as_json)


@admin_key.command()
@click.argument("key_id")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """Revoke the admin key KEY_ID, for good and at once."""
    gone = call("DELETE", "admin-keys", key_id)
    if as_json:
        print_json(gone)
    else:
        click.echo(f"{gone['key_id']} ({gone['display']}, {gone['role']}) is revoked")


def _print_made(made: dict[str, Any], as_json: bool) -> None:
    if made["key"] is None:
        raise click.ClickException(
            f"{made['key_id']} was made, but the answer that showed the key was lost on its way. It is not "
            f"shown again: `taas admin-key revoke {made['key_id']}`, and make another."
        )
    if as_json:
        print_json(made)
        return
    click.echo(made["key"])
    whose = f"{made['role']} of {made['tenant_name']}" if made["tenant_name"] else made["role"]
    click.echo(f"{made['key_id']}, {whose}. Keep the key: it is not shown again.", err=True)
