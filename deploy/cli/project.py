"""`taas project`: headings under which a tenant's usage is kept apart."""

import click

from deploy.cli.connection import call, call_list
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, show


@click.group()
def project() -> None:
    """Projects of tenants: create, list, rename, archive, restore."""


@project.command()
@click.argument("name")
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@json_option
def create(name: str, tenant: str, as_json: bool) -> None:
    """Create the project NAME of a tenant.

    \b
    taas project create search --tenant acme
    """
    made = call("POST", "projects", body={"tenant": tenant, "name": name})
    if as_json:
        print_json(made)
    else:
        click.echo(f"project {made['name']} of {made['tenant_name']} is {made['project']}")


@project.command("list")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--all", "archived", is_flag=True, help="Include archived ones.")
@limit_option
@json_option
def list_all(tenant: str | None, archived: bool, limit: int | None, as_json: bool) -> None:
    """List projects."""
    columns: Columns = {
        "TENANT": "tenant_name",
        "NAME": "name",
        "PROJECT": "project",
        "STATUS": "status",
        "CREATED (UTC)": moment("created_ms"),
    }
    query = {"tenant": tenant, "archived": archived or None}
    show(call_list("projects", query=query, limit=limit), as_json, columns, empty="no projects")


@project.command()
@click.argument("name")
@click.argument("new_name")
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@json_option
def rename(name: str, new_name: str, tenant: str, as_json: bool) -> None:
    """Call the project NAME of a tenant by NEW_NAME. Its keys and usage stay."""
    _change(name, {"tenant": tenant, "name": new_name}, as_json)


@project.command()
@click.argument("name")
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@json_option
def archive(name: str, tenant: str, as_json: bool) -> None:
    """Refuse the keys of the project NAME, and leave it out of lists. Its usage stays."""
    _change(name, {"tenant": tenant, "status": "archived"}, as_json)


@project.command()
@click.argument("name")
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@json_option
def restore(name: str, tenant: str, as_json: bool) -> None:
    """Restore the archived project NAME."""
    _change(name, {"tenant": tenant, "status": "active"}, as_json)


def _change(name: str, body: dict[str, str], as_json: bool) -> None:
    changed = call("PATCH", "projects", name, body=body)
    if as_json:
        print_json(changed)
    else:
        click.echo(f"project {changed['name']} of {changed['tenant_name']} is {changed['status']}")
