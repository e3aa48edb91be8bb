"""`taas checkpoint`: signed checkpoints of what tenants used."""

import click

from deploy.cli.connection import call, call_list
from deploy.cli.output import Columns, json_option, limit_option, print_fields, print_json, show


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


@checkpoint.command()
@click.option("--tenant", help="Name or id of the tenant. Default: the audit log.")
@json_option
def now(tenant: str | None, as_json: bool) -> None:
    """Print where the chain stands now, signed: keep it elsewhere, and nobody can rewrite today unseen.

    \b
    taas checkpoint now --json > audit-log.$(date +%FT%H).json
    """
    head = call("GET", "usage", "checkpoints", query={"tenant": tenant, "limit": 1})["head"]
    if head is None:
        raise click.ClickException("there is no link yet, or no key to sign with (TAAS_EVIDENCE_KEY_FILE)")
    if as_json:
        print_json(head)
    else:
        print_fields({**head["checkpoint"], "key": head["key"], "signature": head["signature"]})
