"""`taas price`: what tokens cost, from when."""

import click

from deploy.cli.connection import call, given
from deploy.cli.output import Columns, json_option, moment, print_json, print_table, show

_COLUMNS: Columns = {
    "MODEL": "model", "INPUT": "input", "CACHED INPUT": "cached_input", "OUTPUT": "output", "FROM (UTC)": moment("from_ms"),
}  # fmt: skip


@click.group()
def price() -> None:
    """Prices in USD per million tokens: set, list."""


@price.command("set")
@click.option("--model", required=True, help="The model.")
@click.option("--input", "input_price", required=True, metavar="USD", help="A million input tokens, such as 0.15.")
@click.option("--cached-input", metavar="USD", help="A million from the prefix cache. Default: as other input.")
@click.option("--output", required=True, metavar="USD", help="A million output tokens.")
@click.option("--from", "since", metavar="WHEN", help="ISO 8601, such as 2027-01-01 (UTC). Default: now.")
@json_option
def set_price(
    model: str, input_price: str, cached_input: str | None, output: str, since: str | None, as_json: bool
) -> None:
    """Set a model's price. At most six decimals; a request keeps the price that held when it started.

    \b
    taas price set --model llama-70b --input 0.15 --cached-input 0.03 --output 0.60
    taas price set --model llama-70b --input 0.12 --output 0.50 --from 2027-01-01
    """
    body = given(model=model, input=input_price, cached_input=cached_input, output=output) | given(**{"from": since})
    made = call("POST", "prices", body=body)
    if as_json:
        print_json(made)
    else:
        print_table(_COLUMNS, [made])


@price.command("list")
@click.option("--model", help="Of this model only.")
@json_option
def list_all(model: str | None, as_json: bool) -> None:
    """List prices, past and to come."""
    show(
        call("GET", "prices", query={"model": model}), as_json, _COLUMNS, empty="no prices: usage is recorded unpriced"
    )
