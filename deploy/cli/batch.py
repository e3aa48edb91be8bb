"""`taas batch`: the batches of tenants."""

from typing import Any

import click

from billing.wire.batch_statuses import STATUSES
from deploy.cli.connection import call, call_list
from deploy.cli.output import Columns, Row, json_option, limit_option, moment, print_fields, print_json, show


def _lines(row: Row) -> str:
    lines = row["lines"]
    return f"{lines['completed']} of {lines['total']}, {lines['failed'] + lines['unserved']} failed"


_COLUMNS: Columns = {
    "BATCH": "batch", "TENANT": "tenant_name", "MODEL": "model", "STATUS": "status", "LINES": _lines,
    "CREATED (UTC)": moment("created_ms"), "EXPIRES (UTC)": moment("expires_ms"),
}  # fmt: skip


@click.group()
def batch() -> None:
    """Batches of tenants: list, show, cancel."""


@batch.command("list")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--status", type=click.Choice(STATUSES), help="In this status only.")
@limit_option
@json_option
def list_all(tenant: str | None, status: str | None, limit: int | None, as_json: bool) -> None:
    """List batches, the newest first."""
    answer = call_list("batches", query={"tenant": tenant, "status": status}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no batches")


@batch.command("show")
@click.argument("batch_id")
@json_option
def show_one(batch_id: str, as_json: bool) -> None:
    """Show BATCH_ID: how far it is, and what is wrong with its input. Not what it holds."""
    _print(call("GET", "batches", batch_id), as_json)


@batch.command()
@click.argument("batch_id")
@json_option
def cancel(batch_id: str, as_json: bool) -> None:
    """Begin no further line of BATCH_ID. What is under way is completed, delivered and billed."""
    _print(call("POST", "batches", batch_id, "cancel"), as_json)


def _print(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    errors = [
        error["message"] if error["line"] is None else f"line {error['line']}: {error['message']}"
        for error in row["errors"] or ()
    ]
    reached = sorted(row["times"], key=lambda status: row["times"][status])
    times = {status: moment(status)(row["times"]) for status in reached}
    print_fields({
        "batch": row["batch"], "status": row["status"], "tenant": row["tenant_name"],
        "project": row["project"], "key": row["key_id"], "route": row["route"], "model": row["model"],
        "lines": _lines(row), "tokens": ", ".join(f"{kind} {n}" for kind, n in row["tokens"].items()),
        "estimate (tokens)": row["estimate_tokens"], "created (UTC)": moment("created_ms")(row),
        "expires (UTC)": moment("expires_ms")(row),
        **{f"{status} (UTC)": at for status, at in times.items()}, "errors": errors,
    })  # fmt: skip
