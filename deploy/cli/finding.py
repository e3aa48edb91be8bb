"""`taas finding`: what audits found, who looks at it, and what came of it."""

from typing import Any

import click

from deploy.cli.connection import call, call_list
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, show


@click.group()
def finding() -> None:
    """What audits found: list, assign, resolve."""


@finding.command("list")
@click.option(
    "--state", type=click.Choice(["open", "acknowledged", "resolved", "closed"]), help="In it only."
)
@click.option("--kind", help="Of this kind only, such as residual.")
@click.option("--all", "gone", is_flag=True, help="Include those that no audit sees any more.")
@limit_option
@json_option
def list_all(state: str | None, kind: str | None, gone: bool, limit: int | None, as_json: bool) -> None:
    """List findings, newest first. An audit opens them, every half minute, and closes what is gone.

    \b
    taas finding list --state open
    """
    columns: Columns = {
        "FINDING": "finding",
        "KIND": "kind",
        "STATE": "state",
        "OWNER": "owner",
        "SINCE (UTC)": moment("opened_ms"),
        "AT": lambda row: row["said"].get("instance"),
        "WHAT": lambda row: row["reason"] or row["said"]["message"],
    }
    query = {"state": state, "kind": kind, "gone": gone or state == "closed" or None}
    show(call_list("findings", query=query, limit=limit), as_json, columns, empty="nothing was found")


@finding.command()
@click.argument("finding_id", metavar="FINDING")
@click.option("--owner", required=True, help="Who looks at it.")
@json_option
def assign(finding_id: str, owner: str, as_json: bool) -> None:
    """Give FINDING an owner: it is acknowledged.

    \b
    taas finding assign fnd_0123456789abcdef --owner ada
    """
    _changed(call("PATCH", "findings", finding_id, body={"owner": owner}), as_json)


@finding.command()
@click.argument("finding_id", metavar="FINDING")
@click.option("--reason", required=True, help="Why it needs nobody any more.")
@json_option
def resolve(finding_id: str, reason: str, as_json: bool) -> None:
    """Resolve FINDING. It is opened again if there is more of it.

    \b
    taas finding resolve fnd_0123456789abcdef --reason "a test without the gateway"
    """
    _changed(call("PATCH", "findings", finding_id, body={"resolve": reason}), as_json)


def _changed(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        click.echo(f"{row['finding']} ({row['kind']}) is {row['state']}")
