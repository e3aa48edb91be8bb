"""`taas budget`: what a tenant, a project or a key may spend in a day, in a month, or in total."""

from typing import Any

import click

from deploy.cli import moments
from deploy.cli.connection import call, call_list, given
from deploy.cli.output import (
    Columns,
    json_option,
    limit_option,
    moment,
    print_fields,
    print_json,
    print_table,
    second,
    show,
)


def _raised(row: Any) -> str | None:
    return None if row["raised"] is None else f"+{row['raised']['usd']}"


def _alerts(row: Any) -> str | None:
    """A failed one is marked."""
    shown = (f"{each['percent']}%" + ("!" if each["failure"] else "") for each in row["alerts"])
    return " ".join(shown) or None


def _since(row: Any) -> str | None:
    """A budget in total has no beginning."""
    return None if row["per"] in {"total", "prepaid"} else second(row["from_ms"])


_COLUMNS: Columns = {
    "BUDGET": "budget", "TENANT": "tenant_name", "PROJECT": "project_name", "KEY ID": "key_id", "PER": "per",
    "USD": "usd", "RAISED": _raised, "SPENT": "spent", "LEFT": "left", "FROM (UTC)": _since,
    "UNTIL (UTC)": moment("until_ms"), "RUNS OUT (UTC)": moment("runs_out_ms"), "ALERTS": _alerts,
}  # fmt: skip


@click.group()
def budget() -> None:
    """Budgets: set, list, alert, remove."""


@budget.command("set")
@click.option("--tenant", help="Name or id of the tenant.")
@click.option("--project", help="The budget of this project of the tenant.")
@click.option("--key", "key_id", metavar="KEY_ID", help="The budget of this key.")
@click.option("--usd", required=True, metavar="AMOUNT", help="What may be spent, as in 1.00.")
@click.option(
    "--per", type=click.Choice(["day", "month", "window", "total"]), required=True,
    help="How long that lasts. Days and months are those of the tenant's time zone.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 366), help="With --per window: of so many days.")
@click.option(
    "--starts", metavar="DATE", help="With --per window: one begins on this date, such as 2026-11-02."
)
@click.option("--raise", "raise_by", metavar="AMOUNT", help="So much more, until --raise-until.")
@click.option("--raise-until", metavar="WHEN", help="When the raise ends: a moment, or 3d, 12h.")
@json_option
def set_budget(
    tenant: str | None,
    project: str | None,
    key_id: str | None,
    usd: str,
    per: str,
    days: int | None,
    starts: str | None,
    raise_by: str | None,
    raise_until: str | None,
    as_json: bool,
) -> None:
    """Set a budget. When it is used up, further requests are refused with 429 `insufficient_quota` until its
    next period; those in flight end. What was spent since the period began counts.

    A tenant, its projects and its keys can each have a budget of a day, of a month, and in total. A request
    must fit all that cover it. --usd without --raise ends a raise.

    \b
    taas budget set --tenant acme --usd 500 --per month
    taas budget set --tenant acme --project search --usd 20 --per day
    taas budget set --tenant acme --usd 100 --per window --days 7 --starts 2026-11-02
    taas budget set --tenant acme --usd 500 --per month --raise 100 --raise-until 3d
    """
    if tenant is None and key_id is None:
        raise click.UsageError("give --tenant or --key.")
    if (raise_by is None) != (raise_until is None):
        raise click.UsageError("give --raise and --raise-until together.")
    body = given(tenant=tenant, project=project, key_id=key_id, usd=usd, per=per)
    if {days is not None, starts is not None} != {per == "window"}:
        raise click.UsageError("give --days and --starts with --per window, and only with it.")
    if per == "window":
        body["window"] = {"days": days, "starts": starts}
    if raise_by is not None:
        body["raised"] = {"usd": raise_by, "until": moments.ahead(raise_until, "--raise-until")}
    _print(call("PUT", "budgets", body=body), as_json)


@budget.command("list")
@click.option("--tenant", help="Of this tenant, its projects and its keys only.")
@limit_option
@json_option
def list_all(tenant: str | None, limit: int | None, as_json: bool) -> None:
    """List budgets, and what is spent of them."""
    answer = call_list("budgets", query={"tenant": tenant}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no budgets")


@budget.command()
@click.argument("budget_id", metavar="BUDGET")
@click.option("--percent", type=click.IntRange(1, 100), required=True, help="When so much of it is spent.")
@click.option("--url", help="Where the alert is sent: a POST of JSON.")
@click.option("--remove", "removes", is_flag=True, help="Send none any more.")
@json_option
def alert(budget_id: str, percent: int, url: str | None, removes: bool, as_json: bool) -> None:
    """Have somebody told, once in each period, when so much of the budget BUDGET is spent. The secret with
    which alerts are signed (Standard Webhooks) is shown this once.

    \b
    taas budget alert bud_… --percent 80 --url https://hooks.acme.example/budgets
    taas budget alert bud_… --percent 80 --remove
    """
    if removes == (url is not None):
        raise click.UsageError("give --url or --remove.")
    if removes:
        gone = call("DELETE", "budgets", budget_id, "alerts", str(percent))
        if as_json:
            print_json(gone)
        else:
            click.echo(f"nobody is told any more at {percent} % of {budget_id}")
        return
    made = call("PUT", "budgets", budget_id, "alerts", body={"percent": percent, "url": url})
    if as_json:
        print_json(made)
    else:
        print_fields({"budget": budget_id, "percent": percent, "url": made["url"], "secret": made["secret"]})


@budget.command()
@click.argument("budget_id", metavar="BUDGET")
@json_option
def remove(budget_id: str, as_json: bool) -> None:
    """Remove the budget BUDGET. What was spent stays in the ledger."""
    gone = call("DELETE", "budgets", budget_id)
    if as_json:
        print_json(gone)
    else:
        click.echo(f"{gone['budget']} is removed")


def _print(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(shown)
    else:
        print_table(_COLUMNS, [shown])
