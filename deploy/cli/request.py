"""`taas request`: one request, its receipt and its end."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import click

from deploy.cli.connection import call
from deploy.cli.output import json_option, print_fields, print_json, second

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
    facts = {}
    for name, value in receipt.items():
        label, shown = _SHOWN.get(name, (name, _members))
        facts[label] = shown(value)
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


def _members(value: Any) -> Any:
    """An object as its members."""
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else value


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


# Fields that are not shown by their own name and value.
_SHOWN: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "started_ms": ("started (UTC)", second),
    "first_token_ms": ("first token (UTC)", second),
    "ended_ms": ("ended (UTC)", second),
    "decision": ("decision", _decision),
    "absorbed": ("absorbed", _absorbed),
}
