"""`taas pool`: instances that are interchangeable."""

import click

from deploy.cli.connection import call
from deploy.cli.output import Columns, json_option, show


@click.group()
def pool() -> None:
    """Pools: list."""


@pool.command("list")
@json_option
def list_all(as_json: bool) -> None:
    """List pools, with what serves in them now."""
    columns: Columns = {
        "POOL": "pool", "MODELS": "models", "INSTANCES": "instances", "READY": "ready", "RUNNING": "running", "WAITING": "waiting",
    }  # fmt: skip
    show(call("GET", "pools"), as_json, columns, empty="no pools; a model brings one: `taas model add`")
