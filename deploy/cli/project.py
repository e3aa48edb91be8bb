"""`taas project`: headings under which a tenant's usage is kept apart."""

import click

from deploy.cli.connection import call
from deploy.cli.output import Columns, json_option, moment, print_json, show


@click.group()
def project() -> None:
    """Projects of tenants: create, list."""


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
@json_option
def list_all(tenant: str | None, as_json: bool) -> None:
    """List projects."""
    columns: Columns = {
        "TENANT": "tenant_name",
        "NAME": "name",
        "PROJECT": "project",
        "CREATED (UTC)": moment("created_ms"),
    }
    show(call("GET", "projects", query={"tenant": tenant}), as_json, columns, empty="no projects")
