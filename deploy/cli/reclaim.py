"""`taas reclaim` and `taas release`: machines of a pool for another use, and back."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call, call_list, given
from deploy.cli.moments import resolve, rfc3339
from deploy.cli.output import (
    Columns,
    json_option,
    number,
    print_fields,
    print_json,
    print_table,
    rounded,
    show,
)

USES = ("external", "internal", "research", "recsys", "idle")
_COLUMNS: Columns = {
    "RECLAIM": "reclaim", "POOL": "pool", "INSTANCES": "instances", "FOR": "use", "STATE": "state",
    "BY (UTC)": "by", "CHOSEN": "chosen", "BREAKS": "break", "RELEASED (UTC)": "released",
}  # fmt: skip
_LEAVING: Columns = {
    "INSTANCE": "instance", "FLEX": lambda row: row["open"]["flex"],
    "ON-DEMAND": lambda row: row["open"]["on_demand"], "RESERVED": lambda row: row["open"]["reserved"],
}  # fmt: skip
_LEFT: Columns = {
    "FROM (UTC)": "from", "UNTIL (UTC)": "until", "MACHINES": "machines", "MAY BE SOLD": number("capacity"),
    "SOLD": number("reserved"), "FREE": number("free"), "SHORT": number("short"),
}  # fmt: skip


def _rate(contract: Mapping[str, Any]) -> str:
    """The signed rate then, and the rate that is left if that is lower."""
    signed = rounded(contract["units"])
    return f"{signed} → {rounded(contract['units_then'])}" if _is_cut(contract) else str(signed)


def _fate(contract: Mapping[str, Any]) -> str:
    if contract["run_out"]:
        return "has run out"
    return f"cut, most from {contract['least_from']}" if _is_cut(contract) else "holds"


def _is_cut(contract: Mapping[str, Any]) -> bool:
    return not contract["holds"] and not contract["run_out"]


_CONTRACTS: Columns = {
    "CONTRACT": "contract", "TENANT": "tenant_name", "UNITS/S": _rate, "ENDS (UTC)": "ends", "THEN": _fate,
}  # fmt: skip


def _end_of(row: Mapping[str, Any]) -> str:
    """A billing process of the last version says `goes_on`."""
    end_by: str = row["end_by"]
    return "resumes elsewhere" if row.get("resumes", row.get("goes_on")) else end_by


_STREAMS: Columns = {
    "REQUEST": "request", "TENANT": "tenant_name", "CLASS": "class", "INSTANCE": "instance",
    "STARTED (UTC)": "started",
    "MUST END BY (UTC)": _end_of,
}  # fmt: skip
_BROKEN: Columns = {"FROM (UTC)": "from", "UNTIL (UTC)": "until", "SHORT BY UNITS/S": number("units")}
_STREAMS_SHOWN = 20


@click.command()
@click.argument("pool", required=False)
@click.option("--instances", type=click.IntRange(min=1), metavar="N", help="How many machines.")
@click.option("--for", "use", type=click.Choice(USES), help="The other use.")
@click.option("--by", metavar="WHEN", help="A date, `now`, or a span from now, such as 30min or 90d.")
@click.option(
    "--break", "breaks", is_flag=True, help="Even if it breaks signed contracts; they are cut pro rata."
)
@click.option("--dry-run", is_flag=True, help="Only show what it would do.")
@click.option(
    "--what-if", is_flag=True, help="The same, and what it costs: credits, lost revenue. No --by: now."
)
@yes_option
@click.option("--show", "shown", metavar="RECLAIM", help="Show one reclaim with its steps.")
@json_option
def reclaim(
    pool: str | None,
    instances: int | None,
    use: str | None,
    by: str | None,
    breaks: bool,
    dry_run: bool,
    what_if: bool,
    yes: bool,
    shown: str | None,
    as_json: bool,
) -> None:
    """Take machines of POOL for another use. Shows what that does to whom, asks, and does it; without
    --instances, lists reclaims.

    \b
    taas reclaim llama-70b --instances 4 --for research --by 30min
    taas reclaim llama-70b --instances 4 --for recsys --by 2027-01-01 --dry-run
    taas reclaim llama-70b --instances 4 --for recsys --by 90d --what-if
    taas reclaim                        all of them
    taas reclaim --show rcl_0f3a…
    """
    if shown is not None:
        _print_one(call("GET", "reclaims", shown), as_json)
        return
    if instances is None and use is None and by is None and not (breaks or dry_run or what_if or yes):
        answer = call_list("reclaims", query={"pool": pool})
        show(answer, as_json, _COLUMNS, empty="no machines are taken")
        return
    if what_if:
        dry_run, by = True, by or "now"
    if pool is None or instances is None or use is None or by is None:
        needed = {"POOL": pool, "--instances": instances, "--for": use, "--by": by}
        raise click.UsageError(
            f"missing: {', '.join(name for name, value in needed.items() if value is None)}."
        )
    now = datetime.now(UTC)
    moment = None if by == "now" else rfc3339(resolve(by, now=now, anchor=now, option="--by"))
    body = given(pool=pool, instances=instances, use=use, by=moment, **{"break": breaks or None})
    if as_json:
        require_answerable(yes=yes or dry_run, as_json=True)
        answer = call("POST", "reclaims", body=given(**body, dry_run=dry_run or None))
        print_json(answer)
        if dry_run and answer["plan"]["refusal"] is not None:
            raise click.ClickException(answer["plan"]["refusal"])
        return
    preview = call("POST", "reclaims", body={**body, "dry_run": True})
    plan = preview["plan"]
    print_plan(plan)
    if what_if:
        # Where it is loaded: this module's uses are that one's words.
        from deploy.cli.economics_ahead import print_money

        print_money(preview["money"])
    if plan["refusal"] is not None:
        raise click.ClickException(plan["refusal"])
    if dry_run:
        return
    require_answerable(yes=yes, as_json=False)
    confirm("do it?", yes=yes)
    answer = _order(body, plan)
    click.echo(
        f"\n{answer['reclaim']} is {answer['state']}; `taas release {answer['reclaim']}` gives the machines "
        "back"
    )


@click.command()
@click.argument("reclaim_id", metavar="RECLAIM")
@json_option
def release(reclaim_id: str, as_json: bool) -> None:
    """Give the machines of RECLAIM back to their pool: its instances are ready again. One that has not
    begun is cancelled.
    """
    answer = call("POST", "reclaims", reclaim_id, "release")
    if as_json:
        print_json(answer)
    else:
        back = ", ".join(answer["chosen"]) or "no instance was away"
        click.echo(f"{answer['reclaim']} is {answer['state']}: {back}")


def _order(body: dict[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Order what was shown; where that is not so any more, show what it would do now and say that nothing was
    done.

    The instances of one that drains later are chosen then, by what is open there then.
    """
    agreed = {**body, "broken": plan["broken"]}
    if plan["drains_now"]:
        agreed["chosen"] = [each["instance"] for each in plan["leaving"]]
    try:
        return call("POST", "reclaims", body=agreed)
    except click.ClickException:
        now = call("POST", "reclaims", body={**body, "dry_run": True})["plan"]
        if any(now[field] != plan[field] for field in ("refusal", "leaving", "broken")):
            click.echo("\nwhat it would do now:\n")
            print_plan(now)
        raise


def print_plan(plan: Mapping[str, Any]) -> None:
    """What it would do to whom."""
    others, count = plan["others"], plan["open"]
    print_fields({
        "pool": plan["pool"], "machines": plan["instances"], "for": plan["use"], "by (UTC)": plan["by"],
        "drain from (UTC)": plan["drain_from"], "machines with no engine": plan["not_running"],
        "left for on-demand and flex, units/"
        "s": f"{rounded(others['units_before'])} → {rounded(others['units_after'])}",
        "open on those that "
        "leave": f"{count['flex']} flex, {count['on_demand']} on-demand, {count['reserved']} reserved",
    })  # fmt: skip
    leave = (
        "leave" if plan["drains_now"] else "would leave now (chosen when they drain, by what is open then)"
    )
    _print_titled(f"instances that {leave}, by what is open there", _LEAVING, plan["leaving"])
    _print_titled("what is left, units/s", _LEFT, plan["left"])
    _print_titled("contracts", _CONTRACTS, plan["contracts"])
    streams = plan["streams"][:_STREAMS_SHOWN]
    _print_titled("streams that must have ended or gone on elsewhere", _STREAMS, streams)
    more = sum(count.values()) - len(streams)
    if more > 0:
        click.echo(f"and {more} more are open")
    _print_titled("BROKEN: contracts do not have what was signed, by at most", _BROKEN, plan["broken"])


def _print_titled(title: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        click.echo(f"\n{title}:")
        print_table(columns, rows)


def _print_one(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(_COLUMNS, [found])
    click.echo()
    print_table({"AT (UTC)": "at", "CHANGE": "change", "DETAIL": _detail}, found["history"])


def _detail(step: Mapping[str, Any]) -> str:
    detail = step["detail"]
    # `asked_to_give_way`: `preempted`, as a billing process of the last version says it.
    if step["change"] in {"preempted", "asked_to_give_way", "stopped"}:
        return ", ".join(f"{each['request']} ({each['class']})" for each in detail["requests"])
    if step["change"] == "planned":
        broken = ", breaks contracts" if detail["broken"] else ""
        return f"{detail['instances']} for {detail['use']}{broken}"
    if step["change"] == "draining":
        return ", ".join(detail["chosen"]) or "machines that run nothing"
    return ", ".join(f"{count} {name}" for name, count in detail.get("open", {}).items() if count)
