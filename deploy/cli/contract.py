"""`taas contract`: capacity assigned to a tenant, from the draft to its end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call, call_list
from deploy.cli.contract_price import price
from deploy.cli.contract_quote import quote
from deploy.cli.contract_terms import amendment_body, amendment_options, body_of, terms_options
from deploy.cli.contract_usage import usage
from deploy.cli.economics_ahead import print_compared
from deploy.cli.output import (
    Columns,
    at,
    json_option,
    limit_option,
    minute,
    number,
    percent,
    print_fields,
    print_json,
    print_table,
    rounded,
    show,
)

_COLUMNS: Columns = {
    "CONTRACT": "contract", "TENANT": "tenant_name", "POOL": "pool", "STATE": "state",
    "UNITS/S NOW": number("units"), "FROM (UTC)": at("from"), "ENDS (UTC)": at("ends"),
    "OVERFLOW": "overflow", "STEPS": lambda row: len(row["steps"]),
}  # fmt: skip
_STEPS: Columns = {"FROM (UTC)": at("from"), "UNITS/S": number("units")}


@click.group()
def contract() -> None:
    """Contracts: draft, withdraw, sign, list, show, notice, amend, history, price, quote, usage."""


contract.add_command(usage)
contract.add_command(quote)
contract.add_command(price)


@contract.command()
@terms_options
@json_option
def draft(as_json: bool, **said: Any) -> None:
    """Store a draft of a contract. It holds no capacity until it is signed.

    \b
    taas contract draft --tenant acme --pool llama-70b --units 500 --until 1y --notice-days 30
    """
    _print(call("POST", "contracts", body=body_of(said, draft=True)), as_json)


@contract.command()
@click.argument("contract_id", metavar="[CONTRACT]", required=False)
@terms_options
@click.option("--draft", "as_draft", is_flag=True, help="Only store it, as `draft` does.")
@yes_option
@json_option
def sign(contract_id: str | None, as_draft: bool, yes: bool, as_json: bool, **said: Any) -> None:
    """Sign the draft CONTRACT, or a new contract. Shows it and asks for confirmation. It is refused unless it
    fits at every instant of its term.

    \b
    taas contract sign --tenant acme --pool llama-70b --units 500 --from now --until 3y --notice-days 90
    taas contract sign --tenant acme --pool llama-70b --units 100 --ramp 2027-01-01:200 \\
        --ramp 2028-01-01:400 \\
        --until 3y --min-term 12mo --notice-days 90 --overflow spill --spill-units 50
    taas contract sign con_0f3a…
    """
    if contract_id is None:
        body = body_of(said, draft=as_draft)
        if not as_draft:
            require_answerable(yes=yes, as_json=as_json)
        made = call("POST", "contracts", body=body) if as_draft or yes else _sign_when_shown(body)
        _warn(made)
        _print(made, as_json)
        return
    if as_draft or any(value not in {None, ()} for value in said.values()):
        raise click.UsageError(
            "a draft is signed as it stands; give either CONTRACT or the terms of a new one."
        )
    require_answerable(yes=yes, as_json=as_json)
    if not yes:
        _print(call("GET", "contracts", contract_id), as_json=False)
        confirm("sign it?", yes=yes)
    signed = call("POST", "contracts", contract_id, "sign")
    _warn(signed)
    for line in changed_since(stood_before("signed", _history(contract_id)), signed):
        click.echo(f"note: {line}", err=True)
    _print(signed, as_json)


@contract.command()
@click.argument("contract_id", metavar="CONTRACT")
@json_option
def withdraw(contract_id: str, as_json: bool) -> None:
    """End the draft CONTRACT without signing it. A signed contract ends by notice."""
    ended = call("POST", "contracts", contract_id, "withdraw")
    if as_json:
        print_json(ended)
    else:
        click.echo(f"{ended['contract']} of {ended['tenant_name']} is withdrawn: it will not be signed")


@contract.command("list")
@click.option("--tenant", help="Only of this tenant.")
@click.option("--pool", help="Only in this pool.")
@click.option(
    "--state",
    type=click.Choice(["draft", "signed", "active", "notice_given", "ended"]),
    help="In this state only.",
)
@limit_option
@json_option
def list_all(
    tenant: str | None, pool: str | None, state: str | None, limit: int | None, as_json: bool
) -> None:
    """List contracts, including drafts and ended ones."""
    answer = call_list("contracts", query={"tenant": tenant, "pool": pool, "state": state}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no contracts; sign one with `taas contract sign`")


@contract.command("show")
@click.argument("contract_id", metavar="CONTRACT")
@json_option
def show_one(contract_id: str, as_json: bool) -> None:
    """Show CONTRACT: its terms, its ramp, where it stands, and when the units that it is in came to buy
    something else.
    """
    _print(call("GET", "contracts", contract_id), as_json)
    if as_json:
        return
    reweighed = [
        f"{each['at']} {_change(each)}" for each in _history(contract_id) if each["change"] == "reweighed"
    ]
    if reweighed:
        click.echo("\n" + "\n".join(reweighed))


@contract.command()
@click.argument("contract_id", metavar="CONTRACT")
@click.option("--by", type=click.Choice(["tenant", "operator"]), required=True, help="Which side gives it.")
@click.option("--what-if", is_flag=True, help="Only show what it would cost over eight quarters.")
@yes_option
@json_option
def notice(contract_id: str, by: str, what_if: bool, yes: bool, as_json: bool) -> None:
    """Give notice on CONTRACT, now: it ends when the notice and the minimum term are over. Shows when that
    is, and asks: it is not taken back.

    \b
    taas contract notice con_0f3a… --by tenant
    taas contract notice con_0f3a… --by operator --what-if
    """
    if what_if:
        body = {"notices": [{"contract": contract_id, "by": by}]}
        answer = call("POST", "economics", "what-if", body=body)
        if as_json:
            print_json(answer)
        else:
            print_compared(answer)
        return
    require_answerable(yes=yes, as_json=as_json)
    if not yes:
        plan = call("POST", "contracts", contract_id, "notice", body={"by": by, "dry_run": True})
        click.echo(
            f"{plan['contract']} of {plan['tenant_name']} would end at {minute(plan['ends'])} (UTC), by "
            f"notice of the {by}"
        )
        confirm("give notice?", yes=yes)
    ended = call("POST", "contracts", contract_id, "notice", body={"by": by})
    if as_json:
        print_json(ended)
    else:
        click.echo(f"{ended['contract']} of {ended['tenant_name']} ends at {minute(ended['ends'])} (UTC)")


@contract.command()
@click.argument("contract_id", metavar="CONTRACT")
@amendment_options
@yes_option
@json_option
def amend(contract_id: str, yes: bool, as_json: bool, **said: Any) -> None:
    """Change what both sides have agreed to change of CONTRACT: increase, decrease, extend, another burst,
    overflow or notice. One that lowers it is shown and asked about.

    From the given moment on it holds in place of all that was to follow of it; the past stays. Checked as
    signing is. Notice cannot be amended once it has been given. Steps of the ramp that fall away are named.

    \b
    taas contract amend con_0f3a… --units 800 --from 2027-06-01
    taas contract amend con_0f3a… --until 2031-01-01
    taas contract amend con_0f3a… --overflow spill --spill-units 50 --from 2027-06-01
    taas contract amend con_0f3a… --tenant-notice-days 30
    """
    body = amendment_body(said)
    if not yes:
        before, after = (
            call("GET", "contracts", contract_id),
            call("POST", "contracts", contract_id, "amend", body={**body, "dry_run": True}),
        )
        less = lowered(before, after)
        if less:
            for line in less:
                click.echo(line, err=as_json)
            require_answerable(yes=yes, as_json=as_json)
            confirm("amend it?", yes=yes)
    amended = call("POST", "contracts", contract_id, "amend", body=body)
    _warn(amended)
    for line in changed_since(stood_before("amended", _history(contract_id)), amended):
        click.echo(f"note: {line}", err=True)
    _print(amended, as_json)


@contract.command()
@click.argument("contract_id", metavar="CONTRACT")
@json_option
def history(contract_id: str, as_json: bool) -> None:
    """Every change of CONTRACT, by whom, and what it then said."""
    columns: Columns = {
        "AT (UTC)": at("at"), "CHANGE": _change, "BY": "by", "STATE": lambda row: row["after"]["state"],
        "ENDS (UTC)": lambda row: minute(row["after"]["ends"]), "RAMP": lambda row: _ramp(row["after"]),
        "OVERFLOW": lambda row: _over_time(row["after"], _overflow),
        "NOTICE": lambda row: _over_time(row["after"], _notice),
    }  # fmt: skip
    show(call("GET", "contracts", contract_id, "history"), as_json, columns)


def _history(contract_id: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = call("GET", "contracts", contract_id, "history")["data"]
    return entries


def stood_before(change: str, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The contract as it stood before the last change of this kind. That need not be the last entry: what
    is signed from now on is active in a second.
    """
    last = max(index for index, entry in enumerate(entries) if entry["change"] == change)
    before: Mapping[str, Any] = entries[last - 1]["after"]
    return before


def changed_since(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What signing or amending has done to the start and to the ramp besides what was asked for."""
    lines = []
    if after["from"] != before["from"]:
        lines.append(
            f"it starts at {after['from']}, when it was signed: its start at {before['from']} had passed"
        )
    kept = {step["from"]: step["units"] for step in after["steps"]}
    gone = [step for step in before["steps"][1:] if kept.get(step["from"]) != step["units"]]
    if gone:
        named = ", ".join(f"{step['units']} units per second from {step['from']}" for step in gone)
        lines.append(f"no step of its ramp any more: {named}")
    return lines


def lowered(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What an amendment takes away of the rate, at each moment at which either changes, and of the burst."""
    lines = []
    for moment in sorted({step["from"] for each in (before, after) for step in each["steps"]}):
        was, becomes = _units_at(before, moment), _units_at(after, moment)
        if becomes < was:
            lines.append(
                f"from {minute(moment)} on {rounded(becomes)} units per second in place of {rounded(was)}"
            )
    if float(after["burst_seconds"]) < float(before["burst_seconds"]):
        lines.append(f"a burst of {after['burst_seconds']} s in place of {before['burst_seconds']} s")
    return lines


def _units_at(contract: Mapping[str, Any], moment: str) -> float:
    begun = [float(step["units"]) for step in contract["steps"] if step["from"] <= moment]
    return begun[-1] if begun else 0.0


def _sign_when_shown(body: dict[str, Any]) -> dict[str, Any]:
    """Store a draft, show it, ask for confirmation, and sign it. If that does not happen, withdraw the
    draft.
    """
    drafted = call("POST", "contracts", body={**body, "draft": True})
    try:
        _print(drafted, as_json=False)
        confirm("sign it?", yes=False)
        return call("POST", "contracts", drafted["contract"], "sign")
    except (click.Abort, click.ClickException):
        call("POST", "contracts", drafted["contract"], "withdraw")
        raise


def _warn(contract: Mapping[str, Any]) -> None:
    for line in contract.get("warnings", ()):
        click.echo(f"warning: {line}", err=True)


def _burst(contract: Mapping[str, Any]) -> str:
    """What may come at once; of one that does not run yet, by its first rate."""
    first = contract["units"] if float(contract["units"]) else contract["steps"][0]["units"]
    at_once = float(first) * float(contract["burst_seconds"])
    return f"{rounded(at_once)} units at once ({contract['burst_seconds']} s of its rate)"


def _change(entry: Mapping[str, Any]) -> str:
    """What was done; of weights, which."""
    change, detail = str(entry["change"]), entry["detail"]
    if change != "reweighed" or detail is None:
        return change
    return (
        f"{change}, milliunits a token of {detail['model']}: {_weights(detail['from'])} → "
        f"{_weights(detail['to'])} (in/cached/out)"
    )


def _weights(weights: Mapping[str, int]) -> str:
    return f"{weights['w_in_mu']}/{weights['w_cached_mu']}/{weights['w_out_mu']} v{weights['version']}"


def _ramp(contract: Mapping[str, Any]) -> str:
    return ", ".join(f"{step['units']} from {minute(step['from'])}" for step in contract["steps"])


def _overflow(clause: Mapping[str, Any]) -> str:
    cap = "" if clause["spill_units"] is None else f", at most {clause['spill_units']} units per second"
    return f"{clause['overflow']}{cap}"


def _notice(clause: Mapping[str, Any]) -> str:
    return (
        f"{clause['tenant_notice_days']} days by the tenant, {clause['operator_notice_days']} by the operator"
    )


def _over_time(contract: Mapping[str, Any], word: Callable[[Mapping[str, Any]], str]) -> str:
    """What holds, and each change that is planned of it."""
    now = word(contract)
    said = [now]
    for clause in contract["planned"]:
        before, now = now, word(clause)
        if now != before:
            said.append(f"from {minute(clause['from'])} {now}")
    return "; ".join(said)


def _print(contract: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(contract)
        return
    noticed = (
        None
        if contract["notice_by"] is None
        else f"{minute(contract['notice_given'])} by the {contract['notice_by']}"
    )
    print_fields({
        "contract": contract["contract"], "tenant": contract["tenant_name"], "pool": contract["pool"],
        "state": contract["state"], "units/s now": rounded(contract["units"]), "burst": _burst(contract),
        "from (UTC)": minute(contract["from"]), "until (UTC)": minute(contract["until"]),
        "notice": _over_time(contract, _notice),
        "no end before": None
        if contract["minimum_until"] == contract["from"]
        else minute(contract["minimum_until"]),
        "notice given": noticed, "ends (UTC)": minute(contract["ends"]), "overflow": _over_time(contract,
        _overflow),
        "headroom": "the pool's" if contract["headroom"] == "0" else percent(contract["headroom"]),
        "price": contract["price_reference"],
    })  # fmt: skip
    click.echo()
    print_table(_STEPS, contract["steps"])
