"""`taas economics`: what machines earn and cost, as a table, JSON, CSV, or charts in an HTML file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from deploy.cli.connection import call
from deploy.cli.economics_ahead import plan, what_if
from deploy.cli.economics_charts import page
from deploy.cli.economics_columns import FIGURES
from deploy.cli.moments import BACK, back
from deploy.cli.output import Columns, Row, json_option, minute, print_json, print_table, rounded

_WORDS: Final = "quarter, month, use, pool, model, contract"
_UNKNOWN: Final = {
    "cost_machine_hours": "machine-hours are not in the cost: `taas machine set POOL --usd-per-hour …`",
    "gpus_machine_hours": "machine-hours are of machines whose GPUs are not known: "
    "`taas machine set POOL --gpus …`",
    "power_machine_hours": "machine-hours are of machines whose power is not known: "
    "`taas machine set POOL --kw …`",
    "capacity_machine_hours": "machine-hours are of pools that have not been measured: `taas calibrate`",
    "cost_requests": "requests at providers are not in the cost: it is not known what they cost",
    "price_requests": "requests are not in the revenue: no price held",
}


@click.group(invoke_without_command=True)
@click.option("--by", default="quarter,use", show_default=True, metavar="WORDS", help=f"Some of {_WORDS}.")
@click.option("--from", "since", metavar="WHEN", help=f"{BACK}. Default: the start of the quarter.")
@click.option("--until", metavar="WHEN", help="Default, and at most: now.")
@click.option("--pool", help="Of this pool only.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a row for each line.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write charts and the table to this file; it opens without a network.",
)  # fmt: skip
@json_option
@click.pass_context
def economics(
    context: click.Context,
    by: str,
    since: str | None,
    until: str | None,
    pool: str | None,
    as_csv: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show what machines earned and cost: revenue, cost and margin; unit-hours sold, lent, idle and in other
    use; commitments; and the same for each GPU-hour, kWh and MW-year.

    \b
    taas economics --by quarter,use
    taas economics --by month,pool,model --from 2026-01-01 --csv
    taas economics --by month,use --from 2y --html economics.html
    taas economics plan                     the quarters to come, and what can be taken back
    taas economics what-if --price -10%     what would be otherwise
    """
    if context.invoked_subcommand is not None:
        return
    if as_csv and as_json:
        raise click.UsageError("--csv or --json.")
    query = {"by": by, "from": back(since, "--from"), "until": back(until, "--until"), "pool": pool}
    report = call("GET", "economics", query=query)
    if html is not None:
        html.write_text(page(report, f"Rounding: {report['rounding']}"), encoding="utf-8")
    if as_json:
        print_json(report)
    elif as_csv:
        click.echo(as_rows_of_csv(report), nl=False)
    elif html is None:
        _print(report)
    else:
        click.echo(f"{html} is written")


economics.add_command(what_if)
economics.add_command(plan)


def as_rows_of_csv(report: Mapping[str, Any]) -> str:
    """A row for each line, a column for each figure; what is null is empty."""
    rows = [_flat(line) for line in report["lines"]]
    written = io.StringIO()
    columns = [*report["by"], *(name for name in _flat(report["total"]) if name not in report["by"])]
    table = csv.DictWriter(written, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return written.getvalue()


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    return flat


def _print(report: Mapping[str, Any]) -> None:
    click.echo(f"from {minute(report['from'])} until {minute(report['until'])} (UTC), USD\n")
    if not report["lines"]:
        click.echo("there were no machines, and nothing was used")
        return
    names: Columns = {word.upper(): word for word in report["by"]}
    total: Row = {**report["total"], **dict.fromkeys(report["by"][:1], "total")}
    lines = report["lines"]
    print_table({**names, **FIGURES}, lines if len(lines) == 1 else [*lines, total])
    if report["total"]["machine_hours"] == "0":
        click.echo("no pool had machines: `taas pool set POOL --instances N`", err=True)
    for word, why in _UNKNOWN.items():
        count = report["total"]["unknown"][word]
        if float(count):
            click.echo(f"{rounded(count)} {why}", err=True)
