"""`taas credit`: prepaid credits of tenants."""

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import AHEAD, ahead
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, print_table, show

_COLUMNS: Columns = {
    "CREDIT": "credit", "TENANT": "tenant_name", "USD": "usd", "USED": "used", "LEFT": "left",
    "GRANTED (UTC)": moment("granted_ms"), "EXPIRES (UTC)": moment("expires_ms"), "NOTE": "note",
}  # fmt: skip


@click.group()
def credit() -> None:
    """Prepaid credits: grant, prepaid, list."""


@credit.command()
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@click.option("--usd", required=True, metavar="AMOUNT", help="Such as 5.00.")
@click.option("--expires", metavar="WHEN", help=f"{AHEAD}. Default: never.")
@click.option("--note", help="For what, such as the number of an order.")
@json_option
def grant(tenant: str, usd: str, expires: str | None, note: str | None, as_json: bool) -> None:
    """Grant a tenant a credit, from now on. Invoices use the oldest first.

    \b
    taas credit grant --tenant acme --usd 500 --expires 90d --note "order 4711"
    """
    made = call(
        "POST", "credits", body=given(tenant=tenant, usd=usd, expires=ahead(expires, "--expires"), note=note)
    )
    if as_json:
        print_json(made)
    else:
        print_table(_COLUMNS, [made])


@credit.command()
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@click.option("--off", is_flag=True, help="No longer.")
@json_option
def prepaid(tenant: str, off: bool, as_json: bool) -> None:
    """Let a tenant use no more than its credits can pay, tax included, beside reserved capacity: further
    requests are refused with 429 `insufficient_quota`. `taas budget list` shows what is left.
    """
    made = call("PUT", "credits", "prepaid", body={"tenant": tenant, "prepaid": not off})
    if as_json:
        print_json(made)
    else:
        click.echo(f"{tenant} is prepaid" if made["prepaid"] else f"{tenant} is billed afterwards")


@credit.command("list")
@click.option("--tenant", help="Of this tenant only.")
@limit_option
@json_option
def list_all(tenant: str | None, limit: int | None, as_json: bool) -> None:
    """List credits, the oldest first, and what is left of them."""
    found = call_list("credits", query={"tenant": tenant}, limit=limit)
    show(found, as_json, _COLUMNS, empty="no credits")
