"""`taas limit`: what a tenant, or one key, may ask for in a time and have open at once."""

from collections.abc import Callable
from typing import Any

import click

from billing.wire.limits import FIELDS, NAMES
from deploy.cli.connection import call, call_list, given
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, print_table, show

_NO_LIMIT = "none"


def _limit(field: str) -> Any:
    return lambda row: _NO_LIMIT if row[field] is None else row[field]


_COLUMNS: Columns = {
    "TENANT": "tenant_name", "KEY ID": "key_id", "MODEL": "model",
    **{each.column: _limit(each.name) for each in FIELDS}, "CHANGED (UTC)": moment("updated_ms"),
}  # fmt: skip


class _Count(click.ParamType[int | str]):
    """A count, or `none` for no limit."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == _NO_LIMIT:
            return _NO_LIMIT
        if str(value).isascii() and str(value).isdecimal():
            return int(value)
        raise click.BadParameter(f"{value!r} is neither a count nor `{_NO_LIMIT}`", ctx, param)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _amounts(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each limit that there is."""
    for each in reversed(FIELDS):
        words = each.words[0].upper() + each.words[1:]
        command = click.option(_option(each.name), type=_Count(), metavar="N", help=f"{words}: N, or none.")(
            command
        )
    return command


@click.group()
def limit() -> None:
    """Limits: set, list, remove."""


@limit.command("set")
@click.option("--tenant", help="Name or id of the tenant.")
@click.option("--key", "key_id", metavar="KEY_ID", help="The limit of this key, not of its tenant.")
@click.option("--model", help="On this model. Default: on each model (`*`).")
@_amounts
@json_option
def set_limit(
    tenant: str | None,
    key_id: str | None,
    model: str | None,
    as_json: bool,
    **amounts: int | str | None,
) -> None:
    """Set limits; what is not given stays. A tenant may use a limit's whole allowance at once; it comes back
    evenly over the limit's time.

    Work of a contract counts for no limit of units or tokens: the contract is its own limit. Limits of
    requests and concurrency count it, too. Tokens are prompt and output, cached ones included.

    \b
    taas limit set --tenant acme --requests-per-minute 60 --units-per-minute 100000
    taas limit set --tenant acme --model llama-70b --concurrency 8 --tokens-per-day 2000000
    taas limit set --tenant acme --concurrency none
    """
    if tenant is None and key_id is None:
        raise click.UsageError("give --tenant or --key.")
    limits = given(**amounts)
    if not limits:
        raise click.UsageError(f"give one of {', '.join(map(_option, NAMES))}.")
    body = given(tenant=tenant, key_id=key_id, model=model)
    body |= {name: None if value == _NO_LIMIT else value for name, value in limits.items()}
    changed = call("PUT", "limits", body=body)
    for line in changed["warnings"]:
        click.echo(f"warning: {line}", err=True)
    _print(changed, as_json)


@limit.command("list")
@click.option("--tenant", help="Of this tenant and its keys only.")
@click.option("--key", "key_id", metavar="KEY_ID", help="Of this key only.")
@limit_option
@json_option
def list_all(tenant: str | None, key_id: str | None, limit: int | None, as_json: bool) -> None:
    """List limits."""
    answer = call_list("limits", query={"tenant": tenant, "key_id": key_id}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no limits")


@limit.command()
@click.option("--tenant", help="Name or id of the tenant.")
@click.option("--key", "key_id", metavar="KEY_ID", help="The limit of this key, not of its tenant.")
@click.option("--model", help="On this model. Default: the one on each model (`*`).")
@json_option
def remove(tenant: str | None, key_id: str | None, model: str | None, as_json: bool) -> None:
    """Remove the limits of a tenant or key on one model, or on `*`."""
    if tenant is None and key_id is None:
        raise click.UsageError("give --tenant or --key.")
    gone = call("DELETE", "limits", query={"tenant": tenant, "key_id": key_id, "model": model})
    if as_json:
        print_json(gone)
    else:
        click.echo(f"the limits of {gone['key_id'] or gone['tenant_name']} on {gone['model']} are lifted")


def _print(limit: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(limit)
    else:
        print_table(_COLUMNS, [limit])
