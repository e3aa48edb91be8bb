"""`taas adapter`: a tenant's fine-tunes of a shared model."""

import time
from pathlib import Path
from typing import Any, Final

import click

from deploy.cli.connection import call, call_list
from deploy.cli.output import Columns, Row, json_option, limit_option, print_json, show

_POLL_S: Final = 0.5


def _refused(row: Row) -> str:
    return "; ".join(f"{instance}: {why}" for instance, why in row["refused"].items())


_COLUMNS: Columns = {
    "NAME": "model", "STATUS": "status", "OWNER": "owner_name", "LOADED BY": "loaded", "REFUSED BY": _refused,
    "PATH": "path",
}  # fmt: skip


@click.group()
def adapter() -> None:
    """LoRA adapters of a shared model: add, list, remove."""


@adapter.command()
@click.option("--model", required=True, metavar="MODEL", help="The base: the model whose engines load it.")
@click.option("--name", required=True, help="Its owner asks for MODEL:NAME.")
@click.option(
    "--path",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of its files on the workers' machines, as PEFT saves them: adapter_config.json, "
    "adapter_model.safetensors.",
)
@click.option("--owner", required=True, metavar="TENANT", help="Only this tenant can see and use it.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until an instance has loaded it, or says why not.",
)
@json_option
def add(model: str, name: str, path: Path, owner: str, wait_s: float, as_json: bool) -> None:
    """Add an adapter of MODEL, visible to its owner only.

    \b
    taas worker llama-70b --adapters 4
    taas adapter add --model llama-70b --name support --path /srv/adapters/acme-support --owner acme
    taas price set --model llama-70b:support --input 0.60 --output 2.40
    """
    # Workers run in folders of their own.
    body = {"model": model, "name": name, "path": str(path.absolute()), "owner": owner}
    made = _settled(call("POST", "adapters", body=body), wait_s)
    if as_json:
        print_json(made)
    else:
        click.echo(f"adapter {made['model']}, visible to {made['owner_name']} (owner)")
        if made["loaded"]:
            click.echo(f"loaded by {', '.join(made['loaded'])}")
        for instance, why in made["refused"].items():
            click.echo(f"not loaded by {instance}: {why}", err=True)
        if not made["loaded"] and not made["refused"]:
            click.echo(f"no worker of {model} has loaded it yet; `taas adapter list` shows when one has")
    if made["refused"] and not made["loaded"]:
        click.echo(
            f"error: nobody serves it. Correct it, and the workers try again; `taas adapter remove "
            f"{made['model']}` takes it back",
            err=True,
        )
        raise SystemExit(1)


@adapter.command("list")
@click.option("--model", metavar="MODEL", help="Of this base only.")
@limit_option
@json_option
def list_all(model: str | None, limit: int | None, as_json: bool) -> None:
    """List adapters, and which instances have loaded them."""
    answer = call_list("adapters", query={"model": model}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no adapters; add one with `taas adapter add`")


@adapter.command()
@click.argument("name", metavar="MODEL:NAME")
def remove(name: str) -> None:
    """Retire an adapter: requests for it get 404, engines drop it, what it used stays in the ledger.
    `taas model set MODEL:NAME --status active` brings it back.
    """
    if ":" not in name:
        raise click.UsageError(f"{name} is no adapter: those are named MODEL:NAME.")
    call("PATCH", "models", name, body={"status": "retired"})
    click.echo(f"adapter {name} is retired")


def _settled(made: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """As it is once a worker has loaded it or says why not, or when time is up."""
    until = time.monotonic() + wait_s
    while not (made["loaded"] or made["refused"]) and time.monotonic() < until:
        time.sleep(_POLL_S)
        rows = call_list("adapters", query={"model": made["base"]}, limit=None)["data"]
        made = next((row for row in rows if row["model"] == made["model"]), made)
    return made
