"""`taas usage`: what was used, and what it costs."""

from datetime import UTC, datetime
from typing import Any, Final

import click

from billing.wire.dimensions import Dimension
from deploy.cli.connection import call
from deploy.cli.moments import BACK, back, rfc3339
from deploy.cli.output import Columns, Row, json_option, minute, print_json, print_table

# As many as the API gives at once.
_LINES_MAX: Final = 10_000
_HEADINGS: Final = {"hour": "HOUR (UTC)", "day": "DAY (UTC)"}
_KINDS: Final = {
    "uncached_input": "input", "cached_input": "cached input", "cache_write": "cache write",
    "output": "output",
}  # fmt: skip
_ITEMS: Columns = {
    "MODEL": "model",
    "PRICE": lambda row: "unpriced" if row["price_id"] is None else f"no. {row['price_id']}",
    "TOKENS OF": lambda row: _KINDS[row["kind"]], "TOKENS": "tokens", "USD A MILLION": "price",
    "USD": "amount",
}  # fmt: skip
_COST_ITEMS: Columns = {
    "MODEL": "model", "AT": "instance",
    "COST PRICE": lambda row: "none" if row["price_id"] is None else f"no. {row['price_id']}",
    "TOKENS OF": lambda row: _KINDS[row["kind"]], "TOKENS": "tokens", "USD A MILLION": "price",
    "COST": "amount",
}  # fmt: skip
_NOT_IN_THE_AMOUNT: Final = {
    "unpriced": "not in the amount: no price held",
    "quarantined": "not in the amount: their usage is in doubt",
    "uncosted": "not in the cost: no cost price held (`taas price set --cost`)",
    "untold": "not in the cost: their provider did not say what they used",
}


@click.command()
@click.option("--tenant", help="Of this tenant only. Default: of all.")
@click.option("--by", metavar="WORDS", help=f"Some of {', '.join(Dimension)}: model,hour.")
@click.option(
    "--from",
    "since",
    metavar="WHEN",
    help=f"Requests that ended then or later: {BACK}. Default: the start of the month of --until.",
)
@click.option("--until", metavar="WHEN", help="Requests that ended before it. Default: now.")
@json_option
def usage(tenant: str | None, by: str | None, since: str | None, until: str | None, as_json: bool) -> None:
    """Show tokens and money, grouped; then what is billed, a line for each price: tokens × price = amount.
    Then the same of what providers charge.

    \b
    taas usage --tenant acme
    taas usage --tenant acme --by model,hour --from 2d
    taas usage --by tenant,day --from 2026-01-01 --until 2026-02-01
    """
    query = {
        "tenant": tenant,
        "by": by,
        "from": back(since, "--from"),
        "until": back(until, "--until") or rfc3339(datetime.now(UTC)),
    }
    report = _read(query)
    if as_json:
        print_json(report)
        return
    period = f"from {minute(report['from'])} until {minute(report['until'])} (UTC)"
    if not report["lines"]:
        click.echo(f"nothing was used {period}")
        return
    click.echo(f"{period}\n")
    names: Any = {_HEADINGS.get(word, word.upper()): _group(word) for word in report["by"]}
    counts: Any = {
        name.replace("_", " ").upper(): name
        for name, count in report["total"].items()
        if isinstance(count, int)
    }
    written: Any = {"CACHE WRITE": lambda row: row["tokens"]["written"]}
    figures: Any = {
        **counts, "INPUT": _uncached, "CACHED INPUT": lambda row: row["tokens"]["cached"],
        **(written if report["total"]["tokens"]["written"] else {}),
        "OUTPUT": lambda row: row["tokens"]["output"],
        "ABSORBED": lambda row: row["absorbed"]["prompt"] + row["absorbed"]["output"], "USD": "amount",
    }  # fmt: skip
    makers: Any = {"MAKERS": "cost_makers"} if float(report["total"].get("cost_makers", 0)) else {}
    if report.get("cost_items") or makers:
        figures |= {"COST": "cost", **makers, "MARGIN": "margin"}
    total = {**report["total"], **dict.fromkeys(report["by"], ""), **dict.fromkeys(report["by"][:1], "total")}
    rows = report["lines"] if len(report["lines"]) == 1 else [*report["lines"], total]
    print_table({**names, **figures}, rows)
    if report["items"]:
        click.echo()
        print_table(_ITEMS, report["items"])
    if report.get("cost_items"):
        click.echo()
        print_table(_COST_ITEMS, report["cost_items"])
    for word, why in _NOT_IN_THE_AMOUNT.items():
        if count := report["total"].get(word, {}).get("requests"):
            click.echo(f"{word}: {count} requests, {why}", err=True)


def _uncached(row: Row) -> int:
    tokens = row["tokens"]
    uncached: int = tokens["prompt"] - tokens["cached"] - tokens["written"]
    return uncached


def _read(query: dict[str, Any]) -> dict[str, Any]:
    """The report with the lines of all of its pages."""
    report = call("GET", "usage", query={**query, "limit": _LINES_MAX})
    mark = report.pop("next", None)
    while mark is not None:
        page = call("GET", "usage", query={**query, "limit": _LINES_MAX, "after": mark})
        report["lines"] += page["lines"]
        mark = page["next"]
    return report


def _group(word: str) -> Any:
    if word == "hour":
        return lambda row: minute(row["hour"])
    return lambda row: row.get(f"{word}_name") or row[word]
