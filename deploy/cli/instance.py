"""`taas instance`: engines, and other providers' APIs, that serve a model."""

from pathlib import Path

import click

from billing.wire.engine_kinds import PROVIDER_CONCURRENCY, PROVIDERS
from deploy.cli.connection import call, call_list, given
from deploy.cli.key_file import read_key_file
from deploy.cli.output import Columns, json_option, limit_option, print_json, show

_COLUMNS: Columns = {
    "INSTANCE": "instance", "MODEL": "model", "POOL": "pool",
    "STATUS": lambda row: "removed" if row["removed"] else row["status"], "ADDED": "added",
    "KIND": "engine", "URL": "url",
    "RUNNING": lambda row: row["load"]["running"], "WAITING": lambda row: row["load"]["waiting"],
    "STOPS BY ID": "abort", "BY PRIORITY": "priority", "OWN OS USER": "own_user",
}  # fmt: skip


@click.group()
def instance() -> None:
    """Instances: add, list, remove, evidence. `taas worker` starts and adds its own."""


@instance.command()
@click.option("--model", required=True, help="The model that it serves.")
@click.option("--url", required=True, help="Its base URL, such as http://10.0.0.5:8000, with or without /v1.")
@click.option(
    "--provider", type=click.Choice(PROVIDERS), help="It is another provider's API, in this dialect."
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="File with its API key, of mode 0600.",
)
@click.option("--key", "engine_key", help="Its API key; better in --key-file or TAAS_ENGINE_KEY.")
@click.option("--engine-model", metavar="NAME", help="Its own name for the model. Default: the model's.")
@click.option(
    "--max-concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"How many requests a provider may have at once. Default: {PROVIDER_CONCURRENCY}.",
)
@click.option("--instance", "instance_id", metavar="ID", help="Its id. Default: a random one.")
@click.option(
    "--priority", is_flag=True, help="It schedules by priority (vLLM: --scheduling-policy priority)."
)
@click.option("--force", is_flag=True, help="Add it although it does not answer as it should.")
@json_option
def add(
    model: str,
    url: str,
    provider: str | None,
    key_file: Path | None,
    engine_key: str | None,
    engine_model: str | None,
    max_concurrency: int | None,
    instance_id: str | None,
    priority: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Add an engine that runs already: any server with OpenAI's API, or another provider's API. It is probed
    first; at a provider that costs nothing.

    \b
    taas instance add --model llama-70b --url http://10.0.0.5:8000
    taas instance add --model gpt --provider openai --url https://api.openai.com/v1 \\
      --key-file openai.key --engine-model gpt-4.1
    """
    from deploy.cli.settings import CliSettings

    if engine_key is not None and key_file is not None:
        raise click.UsageError("give --key or --key-file, not both")
    body = given(
        model=model,
        url=url,
        engine=provider,
        key=engine_key or (read_key_file(key_file) if key_file else CliSettings().engine_key),
        engine_model=engine_model,
        max_concurrency=max_concurrency,
        instance=instance_id,
        priority=priority or None,
        force=force or None,
    )
    added = call("POST", "instances", body=body)
    if as_json:
        print_json(added)
        return
    click.echo(f"{added['instance']} serves {added['model']} from {added['url']}")
    for warning in added["warnings"]:
        click.echo(f"warning: {warning}", err=True)


@instance.command("list")
@limit_option
@json_option
def list_all(limit: int | None, as_json: bool) -> None:
    """List the registered instances, including those of workers."""
    empty = "no instances; start one with `taas worker MODEL`, or add one with `taas instance add`"
    show(call_list("instances", limit=limit), as_json, _COLUMNS, empty=empty)


@instance.command()
@click.argument("instance_id")
@json_option
def evidence(instance_id: str, as_json: bool) -> None:
    """Print signed evidence of INSTANCE_ID: the SHA-256 of its weights, vLLM's version and full command, its
    OS user, where it listens, who may call it, whether requests are logged, since when. `taas evidence
    verify` checks it. It is JSON in any case.
    """
    del as_json
    print_json(call("GET", "instances", instance_id, "evidence"))


@instance.command()
@click.argument("instance_id")
@json_option
def remove(instance_id: str, as_json: bool) -> None:
    """Remove INSTANCE_ID: it gets no new requests, and open ones may end. Its engine is left alone. The id
    can be added again.
    """
    gone = call("DELETE", "instances", instance_id)
    if as_json:
        print_json(gone)
    else:
        count = gone["open_requests"]
        ending = "" if not count else f" {count} requests there may end."
        answers = {True: "runs on: stop it yourself", False: "does not answer", None: "is another provider's"}
        engine = answers[gone["engine_answers"]]
        click.echo(f"{gone['instance']} gets no new requests.{ending} Its engine at {gone['url']} {engine}.")
