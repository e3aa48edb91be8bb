"""`taas export`: what is there, as a file: the state for `taas apply`, or the usage of a tenant."""

import sys
from pathlib import Path

import click

from deploy.cli.connection import download
from deploy.cli.moments import BACK, back


@click.command()
@click.option(
    "--tenant", help="Name or id of a tenant: export its usage. Default: the state for `taas apply`."
)
@click.option("--from", "since", metavar="WHEN", help=f"Usage that was recorded then or later: {BACK}.")
@click.option("--until", metavar="WHEN", help="Usage that was recorded before it. Default: now.")
@click.option(
    "--format",
    "form",
    type=click.Choice(
        ["ndjson", "cloudevents", "openmeter", "stripe", "lago", "csv", "parquet", "focus-1.2", "focus-1.4"]
    ),
    default="ndjson",
    show_default=True,
    help="The form of usage.",
)
@click.option("--customer", help="Of stripe and lago: their name of the customer. Default: the tenant's id.")
@click.option(
    "--dataset",
    type=click.Choice(["cost-and-usage", "contract-commitment", "billing-period", "invoice-detail"]),
    help="Of FOCUS. Default: cost-and-usage.",
)
@click.option("--columns", metavar="NAME,…", help="Of FOCUS: these alone.")
@click.option(
    "--as",
    "as_",
    type=click.Choice(["csv", "parquet"]),
    help="Of FOCUS. Default: parquet for a FILE of that name, else csv.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Default: print it."
)
def export(
    tenant: str | None,
    since: str | None,
    until: str | None,
    form: str,
    customer: str | None,
    dataset: str | None,
    columns: str | None,
    as_: str | None,
    out: Path | None,
) -> None:
    """Without --tenant: print models, adapters, pools, instances added by hand, and prices as a file for
    `taas apply`. Keys of instances are not in it: name their files in `key_file` before you apply it
    elsewhere.

    With --tenant: what was recorded of a tenant. ndjson has its chain of hashes, prices, receipts, invoices
    and signed checkpoints, which `taas-verify` checks without this system. cloudevents and openmeter are a
    CloudEvent a line for each request; stripe and lago, the body of one call a line; csv and parquet, a row
    for each. FOCUS has the charges of billing periods that overlap this time, as their invoices have them.

    \b
    taas export > state.yaml
    taas export --tenant acme --from 2026-11-01 --until 2026-12-01 --format ndjson --out acme.ndjson
    taas-verify acme.ndjson --key evidence.pub
    taas export --tenant acme --from 2026-11-01 --format stripe --customer cus_… --out acme.jsonl
    taas export --tenant acme --from 2026-11-01 --until 2026-12-01 --format focus-1.4 --out acme.parquet
    """
    if tenant is None:
        if since or until:
            raise click.UsageError("--from and --until are of the usage of a --tenant.")
        from deploy.desired.export import as_yaml
        from deploy.desired.present import read

        text = as_yaml(read())
        if out is None:
            click.echo(text, nl=False)
            return
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise click.ClickException(f"{out}: {exc.strerror}") from exc
        return
    if since is None:
        raise click.UsageError("Say --from when.")
    if as_ is None and form.startswith("focus-") and out is not None and out.suffix == ".parquet":
        as_ = "parquet"
    query = {
        "tenant": tenant, "from": back(since, "--from"), "until": back(until, "--until"), "format": form,
        "customer": customer, "dataset": dataset, "columns": columns, "as": as_,
    }  # fmt: skip
    if out is None:
        download(sys.stdout.buffer, "usage", "export", query=query)
        return
    # Under another name until it is whole.
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("wb") as file:
            download(file, "usage", "export", query=query)
        part.replace(out)
    except OSError as exc:
        raise click.ClickException(f"{out}: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)
