"""`taas request`: one request, its receipt and its end."""

from decimal import Decimal
from typing import Any

import click

from deploy.cli.connection import call
from deploy.cli.output import json_option, moment, print_fields, print_json

_WHY = {
    "within_contract": "within its contract",
    "spilled": "on-demand, beyond its contract",
    "room": "free capacity",
    "waited": "after it had waited",
    "restored": "again, after Redis had lost it",
    "local_lease": "by a local lease, while Redis was away",
}


@click.group()
def request() -> None:
    """Single requests: show, stop."""


@request.command("show")
@click.argument("request_id")
@json_option
def show_one(request_id: str, as_json: bool) -> None:
    """Show the receipt of REQUEST_ID (the `x-request-id` of its answer): produced, delivered, billed, and
    why.
    """
    receipt = call("GET", "requests", request_id)
    if as_json:
        print_json(receipt)
        return
    facts = {
        "request": receipt["request_id"], "state": receipt["state"], "tenant": receipt.get("tenant"),
        "project": receipt.get("project"), "key": receipt.get("key_id"), "model": receipt.get("model"),
        "instance": receipt.get("instance"), "route": receipt.get("route"), "class": receipt.get("class"),
        "contract": receipt.get("contract"), "decided": _decision(receipt.get("decision")),
        "waited (ms)": receipt.get("waited_ms"), "started (UTC)": _moment(receipt, "started_ms"),
        "ended (UTC)": _moment(receipt, "ended_ms"), "ending": receipt.get("ending"),
        "produced": _tokens(receipt.get("produced")), "delivered": _tokens(receipt.get("delivered")),
        "billed": _tokens(receipt.get("billed")), "absorbed": _absorbed(receipt.get("absorbed")),
        "anomaly": receipt.get("anomaly"), "pricing": receipt.get("pricing"),
        "amount (USD)": receipt.get("amount"),
    }  # fmt: skip
    print_fields(facts)


@request.command()
@click.argument("request_id")
@json_option
def stop(request_id: str, as_json: bool) -> None:
    """End REQUEST_ID now, whichever gateway has it. Its tenant is not billed for it."""
    answer = call("POST", "requests", request_id, "stop")
    if as_json:
        print_json(answer)
    else:
        click.echo(
            f"the gateways are told to stop {request_id}; `taas request show {request_id}` tells how it ended"
        )


def _moment(receipt: dict[str, Any], field: str) -> str | None:
    return moment(field)({field: receipt.get(field)})


def _tokens(tokens: dict[str, int] | None) -> str | None:
    return None if tokens is None else ", ".join(f"{name} {count}" for name, count in tokens.items())


def _decision(decision: dict[str, Any] | None) -> str | None:
    """Why it was admitted as it was; with a contract, how full that was before and after, in work units."""
    if decision is None:
        return None
    said = f"admitted: {_WHY.get(decision['why'], decision['why'])}; asked for {decision['asked']}"
    if "routed" in decision:
        said += f"; routed by {decision['routed']}, {decision['cached_expected']} cached tokens expected"
    if not decision["rate_mu_s"]:
        return said
    before, after, rate = (
        f"{Decimal(decision[name]) / 1000:f}" for name in ("level_before_mu", "level_after_mu", "rate_mu_s")
    )
    return f"{said}; level {before} before, {after} after, at {rate} a second"


def _absorbed(absorbed: dict[str, Any] | None) -> str | None:
    if absorbed is None:
        return None
    reasons = ", ".join(absorbed.get("reasons") or ())
    return f"prompt {absorbed['prompt']}, output {absorbed['output']}" + (f" ({reasons})" if reasons else "")
