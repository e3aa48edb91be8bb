"""`taas limit`: what a tenant, or one key, may ask for in a minute and have open at once."""

from typing import Any

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.output import Columns, json_option, limit_option, moment, print_json, print_table, show

_NO_LIMIT = "none"


def _limit(field: str) -> Any:
    return lambda row: _NO_LIMIT if row[field] is None else row[field]


_COLUMNS: Columns = {
    "TENANT": "tenant_name", "KEY ID": "key_id", "MODEL": "model", "REQUESTS/MIN": _limit("requests_per_minute"),
    "UNITS/MIN": _limit("units_per_minute"), "CONCURRENCY": _limit("concurrency"), "CHANGED (UTC)": moment("updated_ms"),
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


@click.group()
def limit() -> None:
    """Limits: set, list, remove."""


@limit.command("set")
@click.option("--tenant", help="Name or id of the tenant.")
@click.option("--key", "key_id", metavar="KEY_ID", help="The limit of this key, not of its tenant.")
@click.option("--model", help="On this model. Default: on each model (`*`).")
@click.option("--requests-per-minute", type=_Count(), metavar="N", help="N, or none.")
@click.option("--units-per-minute", type=_Count(), metavar="N", help="Work units: N, or none.")
@click.option("--concurrency", type=_Count(), metavar="N", help="Open requests at once: N, or none.")
@json_option
def set_limit(
    tenant: str | None,
    key_id: str | None,
    model: str | None,
    requests_per_minute: int | str | None,
    units_per_minute: int | str | None,
    concurrency: int | str | None,
    as_json: bool,
) -> None:
    """Set limits; what is not given stays. A tenant may use up to one minute's allowance at once.

    What a contract takes does not count for --units-per-minute: the contract is its own limit. Requests and concurrency count it.

    \b
    taas limit set --tenant acme --requests-per-minute 60 --units-per-minute 100000
    taas limit set --tenant acme --model llama-70b --concurrency 8
    taas limit set --tenant acme --concurrency none
    """
    if tenant is None and key_id is None:
        raise click.UsageError("whose limit? Give --tenant or --key.")
    limits = given(requests_per_minute=requests_per_minute, units_per_minute=units_per_minute, concurrency=concurrency)
    if not limits:
        raise click.UsageError("which limit? Give --requests-per-minute, --units-per-minute or --concurrency.")
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
    """Lift the limits of a tenant or key on one model, or on `*`."""
    if tenant is None and key_id is None:
        raise click.UsageError("whose limit? Give --tenant or --key.")
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
