"""`taas adapter`: a tenant's fine-tunes of a shared model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from deploy.cli.connection import call, call_list
from deploy.cli.output import Columns, Row, json_option, limit_option, print_json, show

_POLL_S: Final = 0.5

_path_option = click.option(
    "--path",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of its files on the workers' machines, as PEFT saves them: adapter_config.json, "
    "adapter_model.safetensors.",
)
_wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until an instance has loaded it, or says why not.",
)


def _pairs(field: str) -> Callable[[Row], str]:
    return lambda row: "; ".join(f"{name}: {value}" for name, value in row[field].items())


_COLUMNS: Columns = {
    "NAME": "model", "STATUS": "status", "OWNER": "owner_name", "LOADED BY (FILES)": _pairs("loaded"),
    "REFUSED BY": _pairs("refused"), "PATH": "path",
}  # fmt: skip


@click.group()
def adapter() -> None:
    """LoRA adapters of a shared model: add, list, set, remove."""


@adapter.command()
@click.option("--model", required=True, metavar="MODEL", help="The base: the model whose engines load it.")
@click.option("--name", required=True, help="Its owner asks for MODEL:NAME.")
@_path_option
@click.option("--owner", required=True, metavar="TENANT", help="Only this tenant can see and use it.")
@_wait_option
@json_option
def add(model: str, name: str, path: Path, owner: str, wait_s: float, as_json: bool) -> None:
    """Add an adapter of MODEL, visible to its owner only.

    \b
    taas worker llama-70b --adapters 4
    taas adapter add --model llama-70b --name support --path /srv/adapters/acme-support --owner acme
    taas price set --model llama-70b:support --input 0.60 --output 2.40
    """
    # Absolute, because workers run in folders of their own.
    body = {"model": model, "name": name, "path": str(path.absolute()), "owner": owner}
    _tell(_settled(call("POST", "adapters", body=body), {}, wait_s), as_json)


@adapter.command("list")
@click.option("--model", metavar="MODEL", help="Of this base only.")
@limit_option
@json_option
def list_all(model: str | None, limit: int | None, as_json: bool) -> None:
    """List adapters, and which instances have loaded them."""
    answer = call_list("adapters", query={"model": model}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no adapters; add one with `taas adapter add`")


@adapter.command("set")
@click.argument("name", metavar="MODEL:NAME")
@_path_option
@_wait_option
@json_option
def set_path(name: str, path: Path, wait_s: float, as_json: bool) -> None:
    """Load MODEL:NAME from another folder: new weights under the same name. Requests that run keep the old
    ones; while a worker changes them, it serves no new ones.
    """
    before = _now(name)["loaded"]
    made = call("PATCH", "adapters", name, body={"path": str(path.absolute())})
    _tell(_settled(made, before, wait_s), as_json)


@adapter.command()
@click.argument("name", metavar="MODEL:NAME")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Retire an adapter: requests for it get 404, engines drop it, what it used stays in the ledger.
    `taas model set MODEL:NAME --status active` brings it back.
    """
    _now(name)
    retired = call("PATCH", "models", name, body={"status": "retired"})
    if as_json:
        print_json(retired)
    else:
        click.echo(f"adapter {name} is retired")


def _now(name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = call_list("adapters", query={"model": name.partition(":")[0]})["data"]
    for row in found:
        if row["model"] == name:
            return row
    raise click.ClickException(f"there is no adapter {name}; `taas adapter list` shows those that are")


def _settled(made: dict[str, Any], before: dict[str, str], wait_s: float) -> dict[str, Any]:
    """As it is once a worker has loaded it, as none had before, or says why not; or when time is up."""
    until = time.monotonic() + wait_s
    while True:
        new = {name: files for name, files in made["loaded"].items() if before.get(name) != files}
        if new or made["refused"] or time.monotonic() >= until:
            return {**made, "loaded": new}
        time.sleep(_POLL_S)
        made = _now(made["model"])


def _tell(made: dict[str, Any], as_json: bool) -> None:
    """Exit status 1 if nobody could load it."""
    name = made["model"]
    if as_json:
        print_json(made)
    else:
        click.echo(f"adapter {name}, visible to {made['owner_name']} (owner)")
        if made["loaded"]:
            click.echo(f"loaded by {', '.join(made['loaded'])}")
        elif not made["refused"]:
            click.echo(f"no worker of {made['base']} has loaded it yet: see `taas adapter list`")
    for instance, why in made["refused"].items():
        click.echo(f"not loaded by {instance}: {why}", err=True)
    if made["refused"] and not made["loaded"]:
        raise click.ClickException(
            f"nobody serves it. Workers try again; `taas adapter remove {name}` takes it back"
        )
