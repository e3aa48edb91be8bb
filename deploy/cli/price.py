"""`taas price`: what tokens cost, from when."""

from collections.abc import Callable
from typing import Any

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import AdminApiError, call, call_list, given
from deploy.cli.moments import AHEAD, BACK, ahead, back
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, print_table, show
from deploy.cli.price_import import import_prices
from deploy.cli.price_load import load

_PRICES: Columns = {
    "INPUT": "input", "CACHED INPUT": "cached_input", "CACHE WRITE": "cache_write", "OUTPUT": "output",
    "FROM (UTC)": moment("from_ms"),
}  # fmt: skip
_COLUMNS: Columns = {
    "PRICE": "price_id", "MODEL": "model", "CLASS": lambda row: row["class"] or "all", "CONTRACT": "contract",
    **_PRICES,
}  # fmt: skip
_COST_COLUMNS: Columns = {
    "PRICE": "price_id",
    "MODEL": "model",
    "AT": lambda row: row["instance"] or "any provider",
    **_PRICES,
}
_cost_option: Callable[..., Any] = click.option(
    "--cost", is_flag=True, help="What a provider charges, instead of what tenants pay."
)
_DUE: Columns = {
    "TENANT": "tenant_name", "PRICE": "price_id", "REQUESTS": "requests",
    "INPUT": lambda row: row["tokens"]["uncached"], "CACHED INPUT": lambda row: row["tokens"]["cached"],
    "CACHE WRITE": lambda row: row["tokens"]["cache_write"],
    "OUTPUT": lambda row: row["tokens"]["output"], "USD": "amount",
}  # fmt: skip


@click.group()
def price() -> None:
    """Prices in USD per million tokens: set, load, list, withdraw, backfill, import."""


price.add_command(import_prices)
price.add_command(load)


@price.command("set")
@click.option("--model", required=True, help="The model.")
@click.option("--input", "input_price", metavar="USD", help="A million input tokens, such as 0.15.")
@click.option(
    "--cached-input", metavar="USD", help="A million from the prefix cache. Default: as other input."
)
@click.option(
    "--cache-write",
    metavar="USD",
    help="A million that a provider puts into its cache. Default: as other input.",
)
@click.option("--output", metavar="USD", help="A million output tokens.")
@click.option("--free", is_flag=True, help="The model costs nothing.")
@click.option(
    "--class",
    "class_",
    type=click.Choice(["reserved", "on_demand", "flex", "batch"]),
    help="For requests of this class only; batch: lines of batches.",
)
@click.option("--contract", metavar="CONTRACT", help="For requests of this contract only.")
@click.option(
    "--discount",
    type=click.IntRange(1, 100),
    metavar="PERCENT",
    help="With --class or --contract: so much off the price that holds for all then.",
)
@click.option("--from", "since", metavar="WHEN", help=f"{AHEAD}. Default: now.")
@_cost_option
@click.option("--instance", help="With --cost: at this instance only. Default: at every provider of it.")
@yes_option
@json_option
def set_price(
    model: str,
    input_price: str | None,
    cached_input: str | None,
    cache_write: str | None,
    output: str | None,
    free: bool,
    class_: str | None,
    contract: str | None,
    discount: int | None,
    since: str | None,
    cost: bool,
    instance: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Set a model's price. Without one it is not for sale: external tenants cannot see it.

    At most six decimals; a request keeps the price that held when it started. It replaces a future price for
    the same moment. A change by more than ten times needs confirmation. With --cost it is what a provider
    charges, which only the operator sees.

    A request has the price of its contract and class, else of its contract, else of its class, else of all.
    What a tenant uses above its contract has the contract's price of class on_demand.

    \b
    taas price set --model llama-70b --input 0.15 --cached-input 0.03 --output 0.60
    taas price set --model llama-70b --input 0.12 --output 0.50 --from 2027-01-01
    taas price set --model llama-70b --class batch --discount 50
    taas price set --model llama-70b --contract con_… --class on_demand --input 0.2 --output 0.8
    taas price set --model smollm2-135m-instruct --free
    taas price set --cost --model big --input 2 --cached-input 0.50 --output 8
    """
    if not free and discount is None and (input_price is None or output is None):
        raise click.UsageError("give --input and --output, --discount, or --free.")
    if cost and {class_, contract, discount} != {None}:
        raise click.UsageError("--class, --contract and --discount are not for --cost.")
    if instance is not None and not cost:
        raise click.UsageError("--instance is for --cost: tenants pay one price for a model.")
    body = given(
        model=model, input=input_price, cached_input=cached_input, cache_write=cache_write, output=output,
        free=free or None, confirmed=yes or None, instance=instance, contract=contract, discount=discount,
        **{"from": ahead(since, "--from"), "class": class_},
    )  # fmt: skip
    prices = _route(cost)
    try:
        made = call("POST", prices, body=body)
    except AdminApiError as refused:
        if refused.code != "price_changes_much":
            raise
        click.echo(refused.message, err=True)
        require_answerable(yes=yes, as_json=as_json)
        confirm("set it?", yes=yes)
        made = call("POST", prices, body={**body, "confirmed": True})
    if as_json:
        print_json(made)
        return
    print_table(_COST_COLUMNS if cost else _COLUMNS, [made])
    if made["replaces"] is not None:
        click.echo(f"it takes the place of price {made['replaces']}, which is withdrawn")


@price.command("list")
@click.option("--model", help="Of this model only.")
@_cost_option
@limit_option
@json_option
def list_all(model: str | None, cost: bool, limit: int | None, as_json: bool) -> None:
    """List past and future prices."""
    empty = "no prices: a model without one is unknown to external tenants"
    if cost:
        empty = "no cost prices: what providers charge is in no report"
    found = call_list(_route(cost), query={"model": model}, limit=limit)
    show(found, as_json, _COST_COLUMNS if cost else _COLUMNS, empty=empty)


@price.command()
@click.argument("price_id", type=click.IntRange(min=1), metavar="PRICE")
@_cost_option
@json_option
def withdraw(price_id: int, cost: bool, as_json: bool) -> None:
    """Withdraw PRICE (its number in `taas price list`), if it does not hold yet. A price that holds or has
    held stays.
    """
    gone = call("DELETE", _route(cost), str(price_id))
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


def _route(cost: bool) -> str:
    return "cost-prices" if cost else "prices"


def _print_backfill(plan: dict[str, Any]) -> None:
    if plan["data"]:
        print_table(_DUE, plan["data"])
    click.echo(f"{plan['requests']} unpriced requests would be billed, {plan['amount']} USD")
    if plan["still_unpriced"]:
        click.echo(
            f"{plan['still_unpriced']} more have no price for their moment: `taas price set --from` an "
            "earlier date"
        )
