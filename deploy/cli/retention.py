"""`taas retention`: how long usage events are kept."""

from typing import Any

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call
from deploy.cli.output import Columns, json_option, moment, print_fields, print_json, print_table

_DUE: Columns = {
    "DAY (UTC)": "day", "EVENTS": "events",
    "KEPT BECAUSE": lambda row: "; ".join(row["blocked"]) or "nothing: it can be dropped",
}  # fmt: skip
_DROPPED: Columns = {
    "DAY (UTC)": "day", "EVENTS": "events", "KEPT": "kept", "DROPPED (UTC)": moment("dropped_ms"),
}  # fmt: skip
_days_option = click.option(
    "--days", type=click.IntRange(min=35), help="Keep so many. Default: TAAS_USAGE_RETENTION_DAYS of billing."
)


@click.group()
def retention() -> None:
    """How long usage events are kept: show, run."""


@retention.command()
@_days_option
@json_option
def show(days: int | None, as_json: bool) -> None:
    """Show which days are older than is kept, and why each is still there; and what was dropped.

    \b
    taas retention show --days 90
    """
    found = call("GET", "retention", query={"days": days})
    if as_json:
        print_json(found)
        return
    print_fields(
        {"kept": "all" if found["days"] is None else f"{found['days']} days", "from": found["oldest"]}
    )
    for columns, rows in ((_DUE, found["due"]), (_DROPPED, found["dropped"])):
        if rows:
            click.echo()
            print_table(columns, rows)


@retention.command()
@_days_option
@yes_option
@json_option
def run(days: int | None, yes: bool, as_json: bool) -> None:
    """Drop the usage events of days that are older than is kept and final: invoiced, in closed books, in
    signed usage checkpoints. Sums, ledger, invoices and proofs stay. It cannot be undone.
    """
    require_answerable(yes=yes, as_json=as_json)
    found = call("GET", "retention", query={"days": days})
    final = [each for each in found["due"] if not each["blocked"]]
    if not final and not as_json:
        click.echo("no day can be dropped (taas retention show)")
        return
    if final:
        confirm(f"drop the usage events of {len(final)} days, up to {final[-1]['day']}?", yes=yes)
    done: list[dict[str, Any]] = [
        call("POST", "retention", "drop", body={"day": each["day"]}) for each in final
    ]
    if as_json:
        print_json({"dropped": done})
    else:
        print_table(_DROPPED, done)
