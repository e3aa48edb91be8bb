"""`taas terms`: how a tenant is billed: when its periods begin, tax, commitment, volume discounts."""

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import AHEAD, ahead_or_day
from deploy.cli.output import Columns, Row, json_option, moment, print_json, print_table, show


def _tax(row: Row) -> str:
    return f"{row['tax_percent']} %" + (f" {row['tax_name']}" if row["tax_name"] else "")


def _tiers(row: Row) -> str | None:
    return " ".join(f"{each['above']}:{each['percent']}%" for each in row["tiers"]) or None


_COLUMNS: Columns = {
    "FROM (UTC)": moment("from_ms"), "DAY": "day", "TAX": _tax, "COMMITMENT": "commitment", "TIERS": _tiers,
}  # fmt: skip


@click.group()
def terms() -> None:
    """The terms by which tenants are billed: set, list."""


@terms.command("set")
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@click.option(
    "--day", type=click.IntRange(1, 31), help="On which day of the month its periods begin. At first: 1."
)
@click.option("--tax", metavar="PERCENT", help="Such as 19 or 7.5. At first: 0.")
@click.option("--tax-name", metavar="NAME", help="Such as VAT.")
@click.option("--commitment", metavar="USD", help="What it pays in a period at least. At first: 0.")
@click.option(
    "--tier", "tiers", multiple=True, metavar="USD:PERCENT",
    help="So much off what it uses in a period above this amount, up to the next tier.",
)  # fmt: skip
@click.option("--no-tiers", is_flag=True, help="Nothing off any more.")
@click.option(
    "--from", "since", metavar="WHEN",
    help=f"Periods that begin then or later: {AHEAD}. A date begins at the tenant's midnight. Default: now.",
)  # fmt: skip
@json_option
def set_terms(
    tenant: str,
    day: int | None,
    tax: str | None,
    tax_name: str | None,
    commitment: str | None,
    tiers: tuple[str, ...],
    no_tiers: bool,
    since: str | None,
    as_json: bool,
) -> None:
    """Set how a tenant is billed, in periods that begin at --from or later. What is left out stays as it is.

    \b
    taas terms set --tenant acme --tax 19 --tax-name VAT --commitment 1000 --tier 5000:5 --tier 20000:10
    taas terms set --tenant acme --commitment 2000
    """
    if tiers and no_tiers:
        raise click.UsageError("--tier and --no-tiers contradict each other.")
    body = given(
        tenant=tenant, day=day, tax_percent=tax, tax_name=tax_name, commitment=commitment,
        **{"from": ahead_or_day(since, "--from")},
    )  # fmt: skip
    if tiers or no_tiers:
        body["tiers"] = [_tier(each) for each in tiers]
    made = call("POST", "terms", body=body)
    if as_json:
        print_json(made)
    else:
        print_table(_COLUMNS, [made])
        this_one = "; for this one, give its first day as --from" if since is None else ""
        click.echo(f"they hold for periods that begin then or later{this_one}")


@terms.command("list")
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@json_option
def list_all(tenant: str, as_json: bool) -> None:
    """List a tenant's terms, past and future."""
    found = call_list("terms", query={"tenant": tenant})
    show(found, as_json, _COLUMNS, empty="no terms: invoices are of calendar months, without tax")


def _tier(text: str) -> dict[str, object]:
    above, _, percent = text.partition(":")
    if not percent.removesuffix("%").isdecimal():
        raise click.BadParameter(f"{text!r} is no tier. Give one such as 5000:10.", param_hint="--tier")
    return {"above": above, "percent": int(percent.removesuffix("%"))}
