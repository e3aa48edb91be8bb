"""`taas books` and `taas maker`: a month's closing, what accounts hold, what is owed to makers of models."""

from typing import Any

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import AHEAD, ahead
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, print_table, show

_TERMS: Columns = {
    "MODEL": "model", "MAKER": "maker",
    "SHARE": lambda row: row["share_percent"] and f"{row['share_percent']} %",
    "INPUT": "input", "OUTPUT": "output", "FROM (UTC)": moment("from_ms"),
}  # fmt: skip
_LINES: Columns = {
    "MAKER": "maker", "MODEL": "model", "INPUT": "billed_prompt", "OUTPUT": "billed_output",
    "REVENUE": "revenue", "OWED SO FAR": "owed_so_far", "USD": "amount",
}  # fmt: skip
_BALANCES: Columns = {"ACCOUNT": "account", "HOLDER": "holder", "USD": "usd"}


@click.group()
def books() -> None:
    """The books: close, show, balances."""


@books.command()
@click.option("--month", required=True, metavar="YYYY-MM", help="Which month, in UTC.")
@yes_option
@json_option
def close(month: str, yes: bool, as_json: bool) -> None:
    """Close the books of a month: record what is owed to makers and providers, and what absorbed tokens would
    have cost. What comes later is in the next month's.
    """
    require_answerable(yes=yes, as_json=as_json)
    confirm(f"close the books of {month}?", yes=yes)
    _print(call("POST", "books", body={"month": month}), as_json)


@books.command("show")
@click.argument("month", metavar="YYYY-MM")
@json_option
def show_month(month: str, as_json: bool) -> None:
    """Show what a closed month owes to makers."""
    _print(call("GET", "books", month), as_json)


@books.command()
@limit_option
@json_option
def balances(limit: int | None, as_json: bool) -> None:
    """List what each account of the ledger holds; all together are 0."""
    show(call_list("books", limit=limit), as_json, _BALANCES, empty="nothing is in the ledger")


@click.group()
def maker() -> None:
    """What is owed to the makers of models: set, list, statement."""


@maker.command("set")
@click.option("--model", required=True, help="The model.")
@click.option("--maker", "name", required=True, help="Who made it.")
@click.option("--share", metavar="PERCENT", help="Of all that tenants pay for the model. 0 ends it.")
@click.option("--input", "input_price", metavar="USD", help="Instead: for a million billed input tokens.")
@click.option("--output", metavar="USD", help="And for a million billed output tokens.")
@click.option("--from", "since", metavar="WHEN", help=f"A whole hour: {AHEAD}. Default: the next one.")
@json_option
def set_maker(
    model: str,
    name: str,
    share: str | None,
    input_price: str | None,
    output: str | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Set what the maker of a model gets: a share of what tenants pay, or a price for each token.

    \b
    taas maker set --model big --maker lab.example --share 20
    taas maker set --model big --maker lab.example --input 0.10 --output 0.40 --from 2027-01-01
    """
    body = given(
        model=model, maker=name, share_percent=share, input=input_price, output=output,
        **{"from": ahead(since, "--from")},
    )  # fmt: skip
    made = call("POST", "makers", body=body)
    if as_json:
        print_json(made)
    else:
        print_table(_TERMS, [made])


@maker.command("list")
@click.option("--model", help="Of this model only.")
@limit_option
@json_option
def list_makers(model: str | None, limit: int | None, as_json: bool) -> None:
    """List what makers get, by model."""
    found = call_list("makers", query={"model": model}, limit=limit)
    show(found, as_json, _TERMS, empty="nothing is owed to makers")


@maker.command()
@click.option("--maker", "name", required=True, help="Whose.")
@click.option("--month", required=True, metavar="YYYY-MM", help="A month whose books are closed.")
@json_option
def statement(name: str, month: str, as_json: bool) -> None:
    """Show what a maker is owed for a month, by model. It is of all until the end of the month, less what was
    stated before: so what came late is in it.
    """
    found = call("GET", "books", month)
    lines = [each for each in found["statements"] if each["maker"] == name]
    if as_json:
        print_json({"maker": name, "month": month, "data": lines})
    elif lines:
        print_table(_LINES, lines)
    else:
        click.echo(f"nothing is owed to {name} for {month}")


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    click.echo(f"the books of {found['month']} are closed")
    if found["statements"]:
        print_table(_LINES, found["statements"])
