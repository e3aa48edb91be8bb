"""`taas contract price`: what a contract's capacity costs, used or not."""

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import AHEAD, ahead
from deploy.cli.output import Columns, json_option, moment, print_json, print_table, show

_COLUMNS: Columns = {
    "CONTRACT": "contract", "USD PER UNIT-HOUR": "unit_hour",
    "GIVEN BACK": lambda row: f"{row['sla_percent']} %", "FROM (UTC)": moment("from_ms"),
}  # fmt: skip


@click.command()
@click.argument("contract_id", metavar="CONTRACT")
@click.option("--unit-hour", metavar="USD", help="What one unit per second costs for an hour.")
@click.option(
    "--sla", "sla_percent", type=click.IntRange(0, 1000), metavar="PERCENT",
    help="So much of it is given back for capacity that was short. Default: 100.",
)  # fmt: skip
@click.option("--from", "since", metavar="WHEN", help=f"{AHEAD}. Default: now.")
@json_option
def price(
    contract_id: str, unit_hour: str | None, sla_percent: int | None, since: str | None, as_json: bool
) -> None:
    """Show what the capacity of CONTRACT costs, or set it with --unit-hour. It is on the tenant's invoices,
    used or not. Only the first price may begin in the past.

    \b
    taas contract price con_0f3a… --unit-hour 0.04 --sla 200
    """
    if unit_hour is None:
        found = call_list("capacity-prices", query={"contract": contract_id})
        show(found, as_json, _COLUMNS, empty="no price: its capacity is on no invoice")
        return
    body = given(
        contract=contract_id, unit_hour=unit_hour, sla_percent=sla_percent,
        **{"from": ahead(since, "--from")},
    )  # fmt: skip
    made = call("POST", "capacity-prices", body=body)
    if as_json:
        print_json(made)
    else:
        print_table(_COLUMNS, [made])
