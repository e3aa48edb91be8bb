"""`taas contract usage`: what came of contracts, minute by minute."""

from datetime import UTC, datetime
from typing import Any, Final

import click

from deploy.cli.connection import call
from deploy.cli.moments import FORMS, resolve, rfc3339
from deploy.cli.output import Columns, json_option, print_json, print_table

_FIGURES: Final = ("assigned", "used", "lent", "borrowed", "refused", "limited", "shortfall", "missing")


@click.command("usage")
@click.argument("contract_id", metavar="[CONTRACT]", required=False)
@click.option("--tenant", help="Of this tenant only. Default: of all.")
@click.option("--from", "since", metavar="WHEN", help=f"The first minute: {FORMS} (before now). Default: an hour ago.")
@click.option("--until", metavar="WHEN", help="Before this moment. Default: now.")
@click.option("--sum", "summed", is_flag=True, help="One line a contract.")
@json_option
def usage(
    contract_id: str | None, tenant: str | None, since: str | None, until: str | None, summed: bool, as_json: bool
) -> None:
    """Show what was assigned, used, lent, borrowed, refused and short, in work units, a line a minute.

    lent: what the owner left idle and others used. borrowed: the owner's work beyond its contract, on-demand. shortfall: what a reclaim
    cut and what was missing. missing: what the ready machines of the pool could not have done.

    \b
    taas contract usage con_0f3a…
    taas contract usage --tenant acme --from 2027-01-31T12:00:00Z --until 2027-01-31T13:00:00Z --sum
    """
    now = datetime.now(UTC)
    query = {
        "contract": contract_id,
        "tenant": tenant,
        "from": _moment(since, now, "--from"),
        "until": _moment(until, now, "--until"),
    }
    report = call("GET", "capacity", query=query)
    if as_json:
        print_json(report)
        return
    if not report["data"]:
        click.echo(f"nothing was assigned or used from {report['from']} until {report['until']}")
        return
    columns: Columns = {
        "CONTRACT": "contract", "TENANT": "tenant_name", "POOL": "pool", "MINUTE (UTC)": "minute",
        **{figure.upper(): figure for figure in _FIGURES},
    }  # fmt: skip
    if summed:
        columns = {heading: field for heading, field in columns.items() if field != "minute"}
        print_table(columns, report["total"])
        return
    rows: list[dict[str, Any]] = report["data"]
    if len(rows) > 1:
        rows = [*rows, *({**total, "minute": "total"} for total in report["total"])]
    print_table(columns, rows)


def _moment(text: str | None, now: datetime, option: str) -> str | None:
    """A span counts back from now: what is asked for has been."""
    if text is None:
        return None
    moment = resolve(text, now=now, anchor=now, option=option)
    return rfc3339(now - (moment - now) if _is_span(text) else moment)


def _is_span(text: str) -> bool:
    return text[-1:].isalpha() and text[:1].isdigit() and "-" not in text
