"""`taas usage`: what was used, and what it costs."""

from typing import Any

import click

from deploy.cli.connection import call
from deploy.cli.output import json_option, print_json, print_table


@click.command()
@click.option("--tenant", help="Of this tenant only. Default: of all.")
@click.option("--by", metavar="WORDS", help="Some of tenant, model, project, key, class, hour, day: model,hour.")
@click.option("--from", "since", metavar="WHEN", help="ISO 8601 in UTC: requests that ended at it or later.")
@click.option("--until", metavar="WHEN", help="ISO 8601 in UTC: requests that ended before it.")
@json_option
def usage(tenant: str | None, by: str | None, since: str | None, until: str | None, as_json: bool) -> None:
    """Show tokens and money, grouped.

    \b
    taas usage --tenant acme --by model,hour
    taas usage --by tenant,day --from 2026-01-01 --until 2026-02-01
    """
    report = call("GET", "usage", query={"tenant": tenant, "by": by, "from": since, "until": until})
    if as_json:
        print_json(report)
        return
    if not report["lines"]:
        click.echo("nothing was used")
        return
    names: Any = {word.upper(): _group(word) for word in report["by"]}
    figures: Any = {
        "REQUESTS": "requests", "INPUT": lambda row: row["tokens"]["prompt"], "CACHED": lambda row: row["tokens"]["cached"],
        "OUTPUT": lambda row: row["tokens"]["output"], "ABSORBED": lambda row: row["absorbed"]["prompt"] + row["absorbed"]["output"],
        "USD": "amount",
    }  # fmt: skip
    total = {**report["total"], **dict.fromkeys(report["by"], ""), **dict.fromkeys(report["by"][:1], "total")}
    rows = report["lines"] if len(report["lines"]) == 1 else [*report["lines"], total]
    print_table({**names, **figures}, rows)
    for word in ("unpriced", "quarantined"):
        if count := report["total"][word]["requests"]:
            click.echo(f"{word}: {count} requests, not in the amount", err=True)


def _group(word: str) -> Any:
    return lambda row: row.get(f"{word}_name") or row[word]
