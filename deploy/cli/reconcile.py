"""`taas reconcile`: what engines and providers counted, beside what was recorded."""

from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from billing.wire.engine_kinds import EXPORTING
from deploy.cli.connection import call, call_list
from deploy.cli.key_file import read_key_file
from deploy.cli.moments import BACK, back
from deploy.cli.output import (
    Columns,
    json_option,
    limit_option,
    moment,
    print_json,
    print_table,
    show,
)
from deploy.cli.provider_ask import ask_provider
from deploy.cli.provider_export import ExportError, read_export

_BYTES_MAX: Final = 64 * 1024 * 1024
_COLUMNS: Columns = {
    "DAY (UTC)": "day", "MODEL THERE": "model", "TOKENS OF": "kind", "BILLED": "billed",
    "ABSORBED": "absorbed", "COUNTED THERE": "theirs", "DIFFERENCE": "difference",
    "UNTOLD REQUESTS": "untold",
}  # fmt: skip


def _pair(word: str) -> Any:
    return lambda row: f"{row[word]['prompt']}/{row[word]['generation']}"


def _added(word: str) -> Any:
    return lambda row: _pair(word)(row["added"])


_BALANCES: Columns = {
    "FROM (UTC)": moment("from_ms"), "UNTIL": moment("until_ms"), "INSTANCE": "instance",
    "RUN": lambda row: f"{row['epoch']}.{row['run']}", "COUNTERS": "counters",
    "PRODUCED": _added("produced"), "BILLED": _added("billed"), "ABSORBED": _added("absorbed"),
    "OPEN": _pair("open"), "RESIDUAL": _pair("residual"), "RUNNING": "running", "WAITING": "waiting",
    "LAG S": lambda row: row["lag_ms"] / 1000,
}  # fmt: skip


@click.group()
def reconcile() -> None:
    """What engines and providers counted, beside what was recorded: show, provider."""


@reconcile.command("show")
@click.option("--instance", help="Of this instance only.")
@click.option(
    "--from", "since", metavar="WHEN", default="1h", show_default=True, help=f"From then on: {BACK}."
)
@click.option("--until", metavar="WHEN", help="Until then.")
@click.option("--residual", is_flag=True, help="Only where there is a residual.")
@limit_option
@json_option
def show_balances(
    instance: str | None, since: str, until: str | None, residual: bool, limit: int | None, as_json: bool
) -> None:
    """Show the balance of engines by minute, the newest first, in tokens: prompt/generation.

    PRODUCED, BILLED and ABSORBED: what was added since the row before. OPEN: what was produced by then and is
    on no bill yet, because its request runs or its usage is on its way. RESIDUAL: what nothing explains.
    A row holds until the next one if nothing moved.

    \b
    taas reconcile show --instance i1 --from 2h
    taas reconcile show --residual --from 30d
    """
    query = {
        "instance": instance, "from": back(since, "--from"), "until": back(until, "--until"),
        "residual": residual or None,
    }  # fmt: skip
    found = call_list("reconciliation", query=query, limit=limit)
    show(found, as_json, _BALANCES, empty="no audit has read a balance")


@reconcile.command("provider")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--provider", required=True, type=click.Choice(EXPORTING), help="Whose count it is.")
@click.option("--instance", "instances", multiple=True, help="Compare with this instance only; repeat it.")
@click.option("--key-id", help="Of the count, only what this API key of yours used: its id there.")
@click.option(
    "--admin-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Instead of FILE: the file of an admin key of the provider, to ask its API.",
)  # fmt: skip
@click.option(
    "--from", "since", metavar="WHEN", default="7d", show_default=True, help=f"Ask from then on: {BACK}."
)
@click.option("--until", metavar="WHEN", help="Ask until then. Default: the days that are over.")
@click.option("--url", help="Where the provider's API is. Default: its own address.")
@click.option("--dry-run", is_flag=True, help="Compare only: no findings, and nothing is kept.")
@json_option
@click.pass_context
def of_provider(
    context: click.Context,
    file: Path | None,
    provider: str,
    instances: tuple[str, ...],
    key_id: str | None,
    admin_key_file: Path | None,
    since: str,
    until: str | None,
    url: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare what a provider says that your account has used with the ledger: by day and model, in tokens.

    FILE is JSON of OpenAI's /v1/organization/usage/completions or Anthropic's
    /v1/organizations/usage_report/messages, grouped by model, or the CSV of their consoles. With
    --admin-key-file these are asked instead. A difference is what the provider counted beyond what is billed
    and absorbed; requests of which it told no usage (`untold`) are in neither. Days that are over and differ
    become findings (`taas finding list --kind provider_differs`), which close when they agree. The exit
    status is 1 if there is a difference.

    \b taas reconcile provider usage.json --provider openai taas reconcile provider claude.csv --provider
    anthropic --instance at-anthropic --key-id apikey_01… taas reconcile provider --provider openai
    --admin-key-file openai-admin.key --from 30d
    """
    if (file is None) == (admin_key_file is None):
        raise click.UsageError("give FILE, or --admin-key-file")
    try:
        if file is not None:
            text = _text_of(file)
        else:
            assert admin_key_file is not None
            span = str(back(since, "--from")), back(until, "--until")
            text = ask_provider(provider, read_key_file(admin_key_file), span, url)
        export = read_export(text, provider, key_id)
    except (ExportError, UnicodeDecodeError) as exc:
        raise click.ClickException(f"{file or provider}: {exc}") from exc
    first, last = min(export.days), max(export.days)
    counted = [
        {"day": day, "model": model, **asdict(each)} for (day, model), each in sorted(export.counted.items())
    ]
    body = {
        "provider": provider, "instances": list(instances), "days": sorted(export.days), "counted": counted,
    }  # fmt: skip
    path = ("provider-usage", "compare") if dry_run else ("provider-usage",)
    rows = call("POST", *path, body=body)["data"]
    if as_json:
        until_day = (date.fromisoformat(last) + timedelta(days=1)).isoformat()
        print_json({"provider": provider, "from": first, "until": until_day, "data": rows})
    else:
        _print(rows, first, last)
    if any(row["difference"] for row in rows):
        context.exit(1)


def _text_of(file: Path) -> str:
    """Raises ExportError or UnicodeDecodeError."""
    if file.stat().st_size > _BYTES_MAX:
        raise ExportError(f"it has more than {_BYTES_MAX // 2**20} MiB: export fewer days")
    return file.read_text(encoding="utf-8")


def _print(rows: list[dict[str, Any]], first: str, last: str) -> None:
    if not rows:
        click.echo(f"nothing was used from {first} to {last}, there or here")
        return
    print_table(_COLUMNS, rows)
    for row in rows:
        if row["difference"]:
            less = "more" if row["difference"] > 0 else "fewer"
            untold = f"; {row['untold']} requests told no usage" if row["untold"] else ""
            click.echo(
                f"{row['day']} {row['model']}: {abs(row['difference'])} {less} {row['kind']} tokens counted "
                f"there than here{untold}",
                err=True,
            )
    if last >= datetime.now(UTC).date().isoformat():
        click.echo(f"{last} is not over: its figures may still change", err=True)
