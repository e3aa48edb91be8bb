"""`taas sink`: where recorded requests are delivered."""

from typing import IO, Any

import click

from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import BACK, back
from deploy.cli.output import (
    Columns,
    json_option,
    limit_option,
    moment,
    print_fields,
    print_json,
    print_table,
    show,
)

_COLUMNS: Columns = {
    "SINK": "sink", "TENANT": "tenant", "FORMAT": "format", "URL": "url", "UNDELIVERED": "undelivered",
    "OLDEST (UTC)": moment("oldest_ms"), "PAUSED": lambda row: "yes" if row["paused"] else None,
    "FAILURE": "failure", "NEXT TRY (UTC)": moment("next_ms"), "SKIPPED": "skipped",
}  # fmt: skip
_SKIPPED: Columns = {
    "REQUEST": "request_id", "TENANT": "tenant", "POSITION": "position", "ENDED (UTC)": moment("ended_ms"),
    "SKIPPED (UTC)": moment("skipped_ms"), "WHY": lambda row: row["why"].replace("_", " "),
}  # fmt: skip


@click.group()
def sink() -> None:
    """Sinks: create, list, pause, resume, remove; what they were not sent."""


@sink.command()
@click.option("--url", required=True, help="Where to POST: https://…, or http:// on this machine.")
@click.option(
    "--format", "form", type=click.Choice(["cloudevents", "openmeter", "stripe", "lago"]), required=True,
    help="What the receiver takes.",
)  # fmt: skip
@click.option("--tenant", help="Name or id: of this tenant only. Default: of all.")
@click.option("--customer", help="What Stripe (cus_…) or Lago (a subscription) call the tenant.")
@click.option("--meter", help="Stripe's name of the event, or Lago's code. Default: taas_tokens.")
@click.option(
    "--bearer-file", type=click.File("r"), metavar="FILE", help="Has the receiver's key; -: standard input."
)
@click.option(
    "--from", "since", metavar="WHEN", help=f"What was recorded then or later: {BACK}. Default: now."
)
@json_option
def create(
    url: str,
    form: str,
    tenant: str | None,
    customer: str | None,
    meter: str | None,
    bearer_file: IO[str] | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Deliver recorded requests to --url, in the order of recording, at least once: an event has the same id
    each time. What is not taken is sent again, for as long as it takes. The secret with which calls are
    signed (Standard Webhooks) is shown this once; the key of --bearer-file, never.

    \b
    taas sink create --url https://meters.example/api/v1/events --format openmeter --bearer-file key
    taas sink create --url https://meter-events.stripe.com/v2/billing/meter_event_stream --format stripe \\
      --tenant acme --customer cus_… --bearer-file key
    """
    bearer = None if bearer_file is None else bearer_file.read().strip()
    body = given(url=url, format=form, tenant=tenant, customer=customer, meter=meter, bearer=bearer)
    if since is not None:
        body["from"] = back(since, "--from")
    made = call("POST", "sinks", body=body)
    if as_json:
        print_json(made)
    else:
        print_fields({name: made[name] for name in ("sink", "url", "format", "secret")})


@sink.command("list")
@click.option("--tenant", help="Of this tenant alone.")
@limit_option
@json_option
def list_all(tenant: str | None, limit: int | None, as_json: bool) -> None:
    """List sinks, how far behind they are, and why."""
    show(call_list("sinks", query={"tenant": tenant}, limit=limit), as_json, _COLUMNS, empty="no sinks")


@sink.command()
@click.argument("sink_id", metavar="SINK")
@json_option
def pause(sink_id: str, as_json: bool) -> None:
    """Send SINK nothing until it is resumed."""
    _print(call("POST", "sinks", sink_id, "pause"), as_json)


@sink.command()
@click.argument("sink_id", metavar="SINK")
@json_option
def resume(sink_id: str, as_json: bool) -> None:
    """Go on with SINK where it was, at once, also if it only waits after a failure."""
    _print(call("POST", "sinks", sink_id, "resume"), as_json)


@sink.command()
@click.argument("sink_id", metavar="SINK")
@json_option
def remove(sink_id: str, as_json: bool) -> None:
    """Remove SINK. What it has taken stays with the receiver."""
    gone = call("DELETE", "sinks", sink_id)
    if as_json:
        print_json(gone)
    else:
        click.echo(f"{gone['sink']} is removed")


@sink.command()
@click.argument("sink_id", metavar="SINK")
@limit_option
@json_option
def skipped(sink_id: str, limit: int | None, as_json: bool) -> None:
    """List requests that SINK was not sent: its receiver takes none so old (Stripe: 35 days), or it may have
    taken them more than a day ago, without an answer, and would count them again (unsure).
    """
    show(call_list("sinks", sink_id, "skipped", limit=limit), as_json, _SKIPPED, empty="nothing was skipped")


def _print(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(shown)
    else:
        print_table(_COLUMNS, [shown])
