"""`taas audit`: the proof that every token that was produced is accounted for."""

from typing import Any, Final

import click

from billing.findings import WRONG
from deploy.cli.connection import call
from deploy.cli.output import json_option, print_json, print_table

_IDS_SHOWN: Final = 3


@click.command()
@click.option("--full", is_flag=True, help="Read back all that was ever recorded.")
@json_option
@click.pass_context
def audit(context: click.Context, full: bool, as_json: bool) -> None:
    """Compare what engines counted with what is billed, absorbed and open, in tokens.

    The residual is what nothing explains; it should be 0, also while requests run. Pairs are
    prompt/generation. The exit status is 1 if there is a residual, an error in the ledger, or an invoice or
    an entry of the audit log that was changed.

    What was recorded since the last signed checkpoints (the end of yesterday) is read back, and must be what
    was chained and follow what was signed. That does not show what was changed of earlier days, in sums or in
    invoices: --full reads everything, in about two minutes a million requests.
    """
    report = call("GET", "audit", query={"full": full or None})
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report["residual_tokens"] or any(finding["kind"] in WRONG for finding in report.get("findings", ())):
        context.exit(1)


def _print(report: dict[str, Any]) -> None:
    if report["instances"]:
        columns: Any = {"INSTANCE": "instance"}
        columns |= {word.upper(): _pair(word) for word in ("produced", "billed", "absorbed", "open")}
        columns["RESIDUAL"] = _residual
        columns["COUNTERS"] = lambda row: "read" if row["counters"] else "none"
        print_table(columns, report["instances"])
        if not all(row["counters"] for row in report["instances"]):
            click.echo(
                "counters: none. Hold a provider's instance against the provider's own count: "
                "`taas reconcile provider FILE --provider …`"
            )
    else:
        click.echo("no instance has served anything yet")
    click.echo(f"residual: {report['residual_tokens']} tokens")
    if report["checked"] != "all":
        click.echo("read back: what was recorded since the last signed checkpoints (--full: everything)")
    if last := report.get("audit_log"):
        click.echo(f"audit log: {last['entry']} entries, the last with hash {last['hash']}")
    for finding in report.get("findings", ()):
        click.echo(f"{finding['kind']}{_where(finding)}: {finding['message']}{_which(finding)}")


def _where(finding: dict[str, Any]) -> str:
    return f" ({finding['instance']})" if "instance" in finding else ""


def _which(finding: dict[str, Any]) -> str:
    """The first of the requests that it is about, and how many there are."""
    ids = finding.get("ids", ())
    if not ids:
        return ""
    more = finding.get("count", len(ids)) - _IDS_SHOWN
    return f": {', '.join(ids[:_IDS_SHOWN])}" + (f" and {more} more" if more > 0 else "")


def _residual(row: dict[str, Any]) -> str:
    """Without counters there is nothing to compare with."""
    shown: str = _pair("residual")(row) if row["counters"] else "–"
    return shown


def _pair(word: str) -> Any:
    return lambda row: f"{row[word]['prompt']}/{row[word]['generation']}"
