"""`taas price`: what tokens cost, from when."""

from typing import Any

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import AdminApiError, call, call_list, given
from deploy.cli.moments import AHEAD, BACK, ahead, back
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, print_table, show

_COLUMNS: Columns = {
    "PRICE": "price_id", "MODEL": "model", "INPUT": "input", "CACHED INPUT": "cached_input",
    "OUTPUT": "output", "FROM (UTC)": moment("from_ms"),
}  # fmt: skip
_DUE: Columns = {
    "TENANT": "tenant_name", "PRICE": "price_id", "REQUESTS": "requests",
    "INPUT": lambda row: row["tokens"]["uncached"], "CACHED INPUT": lambda row: row["tokens"]["cached"],
    "OUTPUT": lambda row: row["tokens"]["output"], "USD": "amount",
}  # fmt: skip


@click.group()
def price() -> None:
    """Prices in USD per million tokens: set, list, withdraw, backfill."""


@price.command("set")
@click.option("--model", required=True, help="The model.")
@click.option("--input", "input_price", metavar="USD", help="A million input tokens, such as 0.15.")
@click.option(
    "--cached-input", metavar="USD", help="A million from the prefix cache. Default: as other input."
)
@click.option("--output", metavar="USD", help="A million output tokens.")
@click.option("--free", is_flag=True, help="The model costs nothing.")
@click.option("--from", "since", metavar="WHEN", help=f"{AHEAD}. Default: now.")
@yes_option
@json_option
def set_price(
    model: str,
    input_price: str | None,
    cached_input: str | None,
    output: str | None,
    free: bool,
    since: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Set a model's price. Without one it is not for sale: external tenants cannot see it.

    At most six decimals; a request keeps the price that held when it started. It replaces a future price for
    the same moment. A change by more than ten times needs confirmation.

    \b
    taas price set --model llama-70b --input 0.15 --cached-input 0.03 --output 0.60
    taas price set --model llama-70b --input 0.12 --output 0.50 --from 2027-01-01
    taas price set --model smollm2-135m-instruct --free
    """
    if not free and (input_price is None or output is None):
        raise click.UsageError("give --input and --output, or --free.")
    body = given(
        model=model, input=input_price, cached_input=cached_input, output=output, free=free or None,
        confirmed=yes or None, **{"from": ahead(since, "--from")},
    )  # fmt: skip
    try:
        made = call("POST", "prices", body=body)
    except AdminApiError as refused:
        if refused.code != "price_changes_much":
            raise
        click.echo(refused.message, err=True)
        require_answerable(yes=yes, as_json=as_json)
        confirm("set it?", yes=yes)
        made = call("POST", "prices", body={**body, "confirmed": True})
    if as_json:
        print_json(made)
        return
    print_table(_COLUMNS, [made])
    if made["replaces"] is not None:
        click.echo(f"it takes the place of price {made['replaces']}, which is withdrawn")


@price.command("list")
@click.option("--model", help="Of this model only.")
@limit_option
@json_option
def list_all(model: str | None, limit: int | None, as_json: bool) -> None:
    """List past and future prices."""
    empty = "no prices: a model without one is unknown to external tenants"
    show(call_list("prices", query={"model": model}, limit=limit), as_json, _COLUMNS, empty=empty)


@price.command()
@click.argument("price_id", type=click.IntRange(min=1), metavar="PRICE")
@json_option
def withdraw(price_id: int, as_json: bool) -> None:
    """Withdraw PRICE (its number in `taas price list`), if it does not hold yet. A price that holds or has
    held stays.
    """
    gone = call("DELETE", "prices", str(price_id))
    if as_json:
        print_json(gone)
    else:
        click.echo(
            f"price {gone['price_id']} of {gone['model']}, from {moment('from_ms')(gone)} (UTC), is withdrawn"
        )


@price.command()
@click.option("--model", required=True, help="The model.")
@click.option(
    "--from", "since", required=True, metavar="WHEN", help=f"Requests that started then or later: {BACK}."
)
@click.option("--until", metavar="WHEN", help="Requests that started before it. Default: now.")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--dry-run", is_flag=True, help="Only show what it would bill.")
@yes_option
@json_option
def backfill(
    model: str, since: str, until: str | None, tenant: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Bill requests that were recorded before their model had a price, by the price list as it now is.

    Shows whom and how much, and asks. What is in the ledger stays; each gets a transaction of its own. Again,
    it finds nothing.

    \b
    taas price set --model llama-70b --input 0.15 --output 0.60 --from 2026-11-01
    taas price backfill --model llama-70b --from 2026-11-01
    """
    body: dict[str, Any] = given(
        model=model, tenant=tenant, until=back(until, "--until"), **{"from": back(since, "--from")}
    )
    plan = call("POST", "prices", "backfill", body={**body, "dry_run": True})
    if not as_json:
        _print_backfill(plan)
    if dry_run or not plan["requests"]:
        if as_json:
            print_json(plan)
        return
    require_answerable(yes=yes, as_json=as_json)
    confirm("bill it?", yes=yes)
    done = call("POST", "prices", "backfill", body=body)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done['requests']} requests are billed, {done['amount']} USD")


def _print_backfill(plan: dict[str, Any]) -> None:
    if plan["data"]:
        print_table(_DUE, plan["data"])
    click.echo(f"{plan['requests']} unpriced requests would be billed, {plan['amount']} USD")
    if plan["still_unpriced"]:
        click.echo(
            f"{plan['still_unpriced']} more have no price for their moment: `taas price set --from` an "
            "earlier date"
        )
