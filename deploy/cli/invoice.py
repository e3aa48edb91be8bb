"""`taas invoice`: what tenants owe for a period, as documents that never change."""

from pathlib import Path
from typing import Any

import click

from billing.wire.invoice_lines import LINE_TYPES
from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call, call_bytes, call_list
from deploy.cli.output import (
    Columns,
    Row,
    json_option,
    limit_option,
    moment,
    print_fields,
    print_json,
    print_table,
    show,
)

_COLUMNS: Columns = {
    "NUMBER": "number", "KIND": "kind", "TENANT": "tenant_name", "PERIOD": "period", "NET": "net",
    "TOTAL": "total", "DUE": "due", "ISSUED (UTC)": moment("issued_ms"), "CORRECTS": "corrects",
}  # fmt: skip


def _what(line: Row) -> str:
    """What a line is, in short; of a type that a later version has, nothing."""
    return LINE_TYPES[line["type"]].brief(line) if line["type"] in LINE_TYPES else ""


_LINES: Columns = {
    "LINE": "line", "TYPE": "type", "OF": _what, "TOKENS": lambda line: line.get("tokens"),
    "PRICE": lambda line: line.get("price") or line.get("price_per_unit_hour"), "EXACT": "exact",
    "USD": "amount",
}  # fmt: skip


@click.group()
def invoice() -> None:
    """Invoices: close, list, show, pdf, check, credit."""


@invoice.command()
@click.option("--tenant", required=True, help="Name or id of the tenant.")
@click.option("--period", required=True, metavar="YYYY-MM", help="The month in which the period begins.")
@yes_option
@json_option
def close(tenant: str, period: str, yes: bool, as_json: bool) -> None:
    """Close a period of a tenant: show its invoice, ask, and issue it. It is final: what comes later is on
    the next one, what was wrong is given back by `taas invoice credit`.

    Periods are closed in their order, once they are over and all their usage is recorded.

    \b
    taas invoice close --tenant acme --period 2026-11
    """
    if not yes:
        draft = call("GET", "invoices", "draft", query={"tenant": tenant, "period": period})
        if not as_json:
            _print(draft["document"])
            for each in draft["findings"] or ():
                click.echo(f"{each['count']} findings {each['kind']} are not resolved: `taas finding list`")
        if draft["waits"]:
            raise click.ClickException(draft["waits"])
        require_answerable(yes=yes, as_json=as_json)
        confirm("issue this invoice?", yes=yes)
    made = call("POST", "invoices", body={"tenant": tenant, "period": period})
    if as_json:
        print_json(made)
        return
    if yes:
        _print(made["document"])
    click.echo(f"{made['number']} is final: {made['due']} USD are due")


@invoice.command("list")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--kind", type=click.Choice(["invoice", "credit_note"]), help="Of this kind only.")
@limit_option
@json_option
def list_all(tenant: str | None, kind: str | None, limit: int | None, as_json: bool) -> None:
    """List invoices and credit notes, the newest first."""
    found = call_list("invoices", query={"tenant": tenant, "kind": kind}, limit=limit)
    show(found, as_json, _COLUMNS, empty="no invoices: `taas invoice close` makes the first")


@invoice.command("show")
@click.argument("number", metavar="NUMBER")
@click.option("--document", "raw", is_flag=True, help="Only the document, byte by byte as it was signed.")
@json_option
def show_one(number: str, raw: bool, as_json: bool) -> None:
    """Show the invoice or credit note NUMBER."""
    if raw:
        click.echo(call_bytes("invoices", number, "document"), nl=False)
        return
    found = call("GET", "invoices", number)
    if as_json:
        print_json(found)
        return
    _print(found["document"])
    print_fields({name: found[name] for name in ("sha256", "key", "signature")})


@invoice.command()
@click.argument("number", metavar="NUMBER")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where it is written.",
)  # fmt: skip
@json_option
def pdf(number: str, out: Path, as_json: bool) -> None:
    """Write the invoice or credit note NUMBER as a PDF."""
    content = call_bytes("invoices", number, "pdf")
    try:
        out.write_bytes(content)
    except OSError as exc:
        raise click.ClickException(f"{out}: {exc.strerror}") from exc
    if as_json:
        print_json({"number": number, "file": str(out), "bytes": len(content)})
    else:
        click.echo(f"{out}: {len(content)} bytes")


@invoice.command()
@click.argument("number", metavar="NUMBER")
@json_option
def check(number: str, as_json: bool) -> None:
    """Compute the invoice NUMBER again from the ledger. Exit status 1 if it is not the same, byte by byte."""
    found = call("GET", "invoices", number, "check")
    if as_json:
        print_json(found)
    elif found["same"]:
        click.echo(f"{number} is the same, byte by byte: {found['sha256']}")
    if not found["same"]:
        raise click.ClickException(
            f"{number} differs: the ledger gives {found['sha256']}, stored is {found['stored_sha256']}"
        )


@invoice.command()
@click.argument("number", metavar="NUMBER")
@click.option("--usd", required=True, metavar="AMOUNT", help="What is given back, before tax.")
@click.option("--reason", required=True, help="Why; it is on the credit note.")
@yes_option
@json_option
def credit(number: str, usd: str, reason: str, yes: bool, as_json: bool) -> None:
    """Give back a part of the invoice NUMBER, and the tax on it, by a credit note.

    \b
    taas invoice credit INV-000012 --usd 5.00 --reason "outage of 12 November"
    """
    require_answerable(yes=yes, as_json=as_json)
    confirm(f"give back {usd} USD of {number}, and the tax on it?", yes=yes)
    made = call("POST", "invoices", number, "credit-notes", body={"usd": usd, "reason": reason})
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made['number']} gives back {made['total'].removeprefix('-')} USD of {number}")


def _print(document: dict[str, Any]) -> None:
    period = document["period"]
    print_fields(
        {
            "number": document["number"],
            "issuer": document["issuer"] or "none: set TAAS_ISSUER of billing",
            "tenant": f"{document['tenant']['name']} ({document['tenant']['id']})",
            "period": f"{period['name']}: {period['from']} until {period['until']} ({period['time_zone']})",
        }
    )
    if document["lines"]:
        names = document.get("project_names", {})
        lines = document["lines"]
        print_table(
            _LINES,
            [{**line, "project": names.get(line.get("project"), line.get("project"))} for line in lines],
        )
    else:
        click.echo("nothing was used")
    sums = {name: document[name] for name in ("net", "tax", "total")}
    # Of a credit note they are below 0: it gives them back.
    used = {
        f"credit {each['credit']}": f"-{each['amount']}".removeprefix("--")
        for each in document.get("credits", ())
    }
    print_fields({**sums, **used, "due": document["due"]})
    for why, count in document.get("not_billed", {}).items():
        if count:
            click.echo(f"{count} requests are on no invoice: {why}")
    for each in document.get("reconciliation", {}).get("findings", ()):
        own = f": {', '.join(each['requests'])}" if each["requests"] else ""
        click.echo(f"still open, {each['finding']} ({each['kind']}): {each['what']}{own}")
