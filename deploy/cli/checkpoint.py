"""`taas checkpoint`: signed checkpoints of what tenants used."""

import click

from deploy.cli.connection import call_list
from deploy.cli.output import Columns, json_option, limit_option, show


@click.group()
def checkpoint() -> None:
    """Where a tenant's chain of usage, or the audit log, stood at the end of each day, signed."""


@checkpoint.command("list")
@click.option("--tenant", help="Name or id of the tenant. Default: the audit log.")
@limit_option
@json_option
def list_all(tenant: str | None, limit: int | None, as_json: bool) -> None:
    """List the days (UTC), newest first. `taas evidence key` prints the key that checks the signatures.

    \b
    taas checkpoint list --tenant acme --json
    """
    columns: Columns = {
        "DAY (UTC)": lambda row: row["checkpoint"]["day"],
        "POSITION": lambda row: row["checkpoint"]["position"],
        "HASH": lambda row: row["checkpoint"]["hash"],
        "KEY": "key",
    }
    found = call_list("usage", "checkpoints", query={"tenant": tenant}, limit=limit)
    show(found, as_json, columns, empty="no day is over yet")
