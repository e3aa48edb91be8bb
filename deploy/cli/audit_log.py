"""`taas audit-log`: who changed what, from what to what, and why."""

from typing import Any

import click

from deploy.cli.connection import call_list
from deploy.cli.moments import BACK, back
from deploy.cli.output import Columns, json_option, limit_option, moment, show


def _change(row: Any) -> str:
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return "made" if before is None else "removed"
    return ", ".join(f"{name}: {before[name]} → {after[name]}" for name in after)


_COLUMNS: Columns = {
    "ENTRY": "entry", "AT (UTC)": moment("at_ms"), "ACTOR": "actor", "ROLE": "role", "ACTION": "action",
    "KIND": "kind", "SUBJECT": "subject", "CHANGE": _change, "WHY": "why",
}  # fmt: skip


@click.group("audit-log")
def audit_log() -> None:
    """The audit log: list. `taas audit` proves that it is as it was written."""


@audit_log.command("list")
@click.option("--tenant", help="Of what is this tenant's only.")
@click.option("--actor", metavar="KEY_ID", help="By this admin key, or `root`.")
@click.option("--action", metavar="PART", help="Whose route has this in it, as in /keys or DELETE.")
@click.option("--kind", help="Of this kind only, as in tenant, api_key, price.")
@click.option("--subject", metavar="ID", help="Of this thing only.")
@click.option("--since", metavar="WHEN", help=f"From then on: {BACK}.")
@click.option("--until", metavar="WHEN", help="Until then.")
@limit_option
@json_option
def list_all(
    tenant: str | None,
    actor: str | None,
    action: str | None,
    kind: str | None,
    subject: str | None,
    since: str | None,
    until: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List what was changed, the newest first.

    \b
    taas audit-log list --tenant acme --since 30d
    taas audit-log list --action prices --limit 20
    """
    query = {
        "tenant": tenant, "actor": actor, "action": action, "kind": kind, "subject": subject,
        "from": back(since, "--since"), "until": back(until, "--until"),
    }  # fmt: skip
    show(call_list("audit-log", query=query, limit=limit), as_json, _COLUMNS, empty="nothing was changed")
