"""`taas machine`: what the machines of a pool cost, draw and are for."""

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import ahead
from deploy.cli.output import Columns, at, json_option, limit_option, print_json, print_table, show
from deploy.cli.reclaim import USES

_COLUMNS: Columns = {
    "ENTRY": "entry", "POOL": "pool", "FROM (UTC)": at("from"), "USD/HOUR": "usd_per_hour", "KW": "kw",
    "OVERHEAD": "overhead", "GPUS": "gpus", "FOR": lambda row: row["use"] or "as its models say",
}  # fmt: skip


@click.group()
def machine() -> None:
    """Machines: set, list."""


@machine.command("set")
@click.argument("pool", metavar="POOL")
@click.option("--usd-per-hour", metavar="AMOUNT", help="What an hour of one costs, all in, such as 98.32.")
@click.option("--kw", metavar="KW", help="The power that one draws, such as 10.2.")
@click.option("--overhead", metavar="FACTOR", help="What its building adds to that (PUE), such as 1.25.")
@click.option("--gpus", type=click.IntRange(min=0), metavar="N", help="How many GPUs one has.")
@click.option(
    "--for", "use", type=click.Choice(USES),
    help="What they are for while no reclaim has them. Default: internal if only internal tenants see the "
    "pool's models, else external.",
)  # fmt: skip
@click.option("--from", "since", metavar="WHEN", help="From then on, also if that has been. Default: now.")
@json_option
def set_terms(
    pool: str,
    usd_per_hour: str | None,
    kw: str | None,
    overhead: str | None,
    gpus: int | None,
    use: str | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Say what each machine of POOL costs, draws and has. What is not given stays as it was. A version is
    never changed; another one from the same moment takes its place.

    \b
    taas machine set llama-70b --usd-per-hour 98.32 --kw 10.2 --overhead 1.25 --gpus 8
    taas machine set llama-70b --usd-per-hour 91 --from 2027-01-01
    """
    body = given(usd_per_hour=usd_per_hour, kw=kw, overhead=overhead, gpus=gpus, use=use)
    if not body:
        raise click.UsageError("nothing to say: give --usd-per-hour, --kw, --overhead, --gpus or --for.")
    body |= given(pool=pool, **{"from": ahead(since, "--from")})
    made = call("POST", "machines", body=body)
    if as_json:
        print_json(made)
    else:
        print_table(_COLUMNS, [made])


@machine.command("list")
@click.option("--pool", help="Of this pool only.")
@limit_option
@json_option
def list_all(pool: str | None, limit: int | None, as_json: bool) -> None:
    """List past and future versions, by pool and time."""
    found = call_list("machines", query={"pool": pool}, limit=limit)
    show(found, as_json, _COLUMNS, empty="nothing is known of any machine: taas machine set POOL …")
