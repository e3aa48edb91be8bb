"""`taas contract usage`: what came of contracts, minute by minute."""

from typing import Any, Final

import click

from deploy.cli.connection import call
from deploy.cli.moments import BACK, back
from deploy.cli.output import Columns, Row, json_option, minute, number, print_json, print_table

_WORK: Final = ("assigned", "used", "lent", "borrowed")
_SHORT: Final = ("shortfall", "missing")


@click.command("usage")
@click.argument("contract_id", metavar="[CONTRACT]", required=False)
@click.option("--tenant", help="Only of this tenant. Default: of all.")
@click.option("--from", "since", metavar="WHEN", help=f"The first minute: {BACK}. Default: an hour ago.")
@click.option("--until", metavar="WHEN", help="Before this moment. Default: now.")
@click.option("--sum", "summed", is_flag=True, help="One line per contract.")
@json_option
def usage(
    contract_id: str | None,
    tenant: str | None,
    since: str | None,
    until: str | None,
    summed: bool,
    as_json: bool,
) -> None:
    """Show what was assigned, used, lent, borrowed, refused and short, in work units, one line per minute.

    refused: requests over the contract. limited: requests that the contract had capacity for and that a
    limit of the tenant or its key refused, by limit. lent: what its holder left idle and others used.
    borrowed: its holder's work beyond the contract, as on-demand. shortfall: what a reclaim cut, plus
    missing. missing: what the ready machines of the pool could not have done.

    \b
    taas contract usage con_0f3a…
    taas contract usage --tenant acme --from 2027-01-31T12:00:00Z --until 2027-01-31T13:00:00Z --sum
    """
    query = {
        "contract": contract_id,
        "tenant": tenant,
        "from": back(since, "--from"),
        "until": back(until, "--until"),
    }
    report = call("GET", "capacity", query=query)
    if as_json:
        print_json(report)
        return
    if not report["data"]:
        period = f"from {minute(report['from'])} until {minute(report['until'])} (UTC)"
        click.echo(f"nothing was assigned or used {period}")
        return
    columns: Columns = {
        "CONTRACT": "contract", "TENANT": "tenant_name", "POOL": "pool", "MINUTE (UTC)": _minute,
        **{figure.upper(): number(figure) for figure in _WORK}, "REFUSED": "refused", "LIMITED": _limited,
        **{figure.upper(): number(figure) for figure in _SHORT},
    }  # fmt: skip
    if summed:
        columns = {heading: field for heading, field in columns.items() if heading != "MINUTE (UTC)"}
        print_table(columns, report["total"])
        return
    rows: list[dict[str, Any]] = report["data"]
    if len(rows) > 1:
        rows = [*rows, *({**total, "minute": "total"} for total in report["total"])]
    print_table(columns, rows)


def _minute(row: Row) -> str | None:
    return "total" if row["minute"] == "total" else minute(row["minute"])


def _limited(row: Row) -> str:
    """How many, and which limits they were."""
    causes = {limit: count for limit, count in row["limited"].items() if count}
    return f"{sum(causes.values())} ({', '.join(causes)})" if causes else "0"
