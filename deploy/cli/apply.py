"""`taas apply` and `taas export`: the state that a file describes, made true; and what is there, as such a
file.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.output import json_option, print_json

if TYPE_CHECKING:
    from deploy.desired.step import Step

# Not 2, which is wrong usage.
DIFFERS: Final = 3
_SIGNS: Final = {"create": "+", "change": "~", "replace": "±", "delete": "-"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--dry-run", is_flag=True, help="Only show what would change. Exit status 0: nothing; 3: something."
)
@click.option("--prune", is_flag=True, help="Also delete what the file's sections lack.")
@yes_option
@json_option
def apply(file: Path, dry_run: bool, prune: bool, yes: bool, as_json: bool) -> None:
    """Make true what FILE (YAML) says of models, adapters, pools, instances, prices and cost prices.

    It shows what is to be created, changed and deleted, and asks. A section or a field that FILE does not
    have is left as it is. Without --prune nothing is deleted; with it, models that a section lacks are
    retired, instances and launches are drained and removed, and prices to come are withdrawn. Applied again,
    it changes nothing.

    \b
    models:
      llama-70b: {context_tokens: 131072, visible: [acme]}
    pools:
      llama-70b:
        instances: 2
        headroom: 10%
        autoscale: {min: 1, max: 2}
        launch: {instances: 2, gpus: 4, path: /models/llama-70b, engine_args: [--tensor-parallel-size, 4]}
    instances:
      gpt: {model: gpt, url: "https://api.openai.com/v1", provider: openai, key_file: openai.key}
    prices:
      llama-70b:
        - {input: 0.15, cached_input: 0.03, output: 0.60}
        - {input: 0.12, output: 0.50, from: 2027-01-01}
    """
    from deploy.desired import document, present
    from deploy.desired.carry_out import carry_out, read_keys
    from deploy.desired.difference import steps
    from deploy.desired.yaml_values import DocumentError

    try:
        wanted = document.read(file)
        found = steps(wanted, present.read(wanted), prune=prune)
    except DocumentError as exc:
        raise click.ClickException(str(exc)) from exc
    keys = read_keys(found)
    if as_json and (dry_run or not found):
        print_json({"changes": [_shown(step) for step in found], "applied": False})
    elif not as_json:
        _print(found)
    if dry_run or not found:
        raise SystemExit(DIFFERS if found else 0)
    require_answerable(yes=yes, as_json=as_json)
    confirm("make these changes?", yes=yes)
    carry_out(found, keys, lambda step: None if as_json else click.echo(f"done: {_title(step)}"))
    if as_json:
        print_json({"changes": [_shown(step) for step in found], "applied": True})


def _print(found: "list[Step]") -> None:
    for step in found:
        where = "not in the file" if step.place is None else str(step.place)
        click.echo(f"{_SIGNS[step.action]} {step.what} {step.name} ({where})")
        for name, before, after in step.fields:
            line = _word(after) if before is None else f"{_word(before)} → {_word(after)}"
            click.echo(f"    {name}: {line}")
        if step.note:
            click.echo(f"    ({step.note})")
    click.echo(f"{len(found)} changes" if found else "no change")


def _title(step: "Step") -> str:
    return f"{step.action} {step.what} {step.name}"


def _shown(step: "Step") -> dict[str, Any]:
    return {
        "action": step.action,
        "what": step.what,
        "name": step.name,
        "line": None if step.place is None else step.place.line,
        "fields": [{"name": name, "before": before, "after": after} for name, before, after in step.fields],
        "note": step.note or None,
    }


def _word(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple | list):
        return ", ".join(map(_word, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
