"""`taas economics what-if` and `plan`: the quarters to come, and what a reclaim or a notice would cost."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import click

from deploy.cli.connection import call, given
from deploy.cli.economics_charts import Series, chart, page
from deploy.cli.moments import resolve, rfc3339
from deploy.cli.output import Columns, Row, at, json_option, minute, number, print_json, print_table, rounded
from deploy.cli.reclaim import USES

_OWN: Final = "own"
_quarters_option = click.option(
    "--quarters", type=click.IntRange(1, 40), default=8, show_default=True, help="So many, this one included."
)
_basis_option = click.option(
    "--basis-days", type=click.IntRange(1, 366), default=28, show_default=True,
    help="Requests go on as in so many days before now.",
)  # fmt: skip


class _Percent(click.ParamType[str]):
    """`+10%`, `-10%`, `60%` or the same as a decimal, as the API takes it."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            part = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
        except ArithmeticError:
            raise click.BadParameter(f"{value!r} is not such as +10%, -0.1 or 60%", ctx, param) from None
        return format(part.normalize(), "f")


def _difference(name: str) -> Any:
    return lambda row: rounded(row["difference"][name])


def _sides(name: str) -> Any:
    return lambda row: f"{rounded(row['before'][name]) or '-'} → {rounded(row['after'][name]) or '-'}"


_COMPARED: Columns = {
    "REVENUE": _sides("revenue"), "COST": _sides("cost"), "MARGIN": _sides("margin"),
    "MORE MARGIN": _difference("margin"), "MORE CREDITS": _difference("credits"),
    "MORE UNIT-H SHORT": _difference("short_commitment"),
    "ECON. %": _sides("economic_utilization_percentage"),
}  # fmt: skip


@click.command("what-if")
@click.option("--pool", help="Of this pool only.")
@click.option("--price", type=_Percent(), metavar="CHANGE", help="All prices, such as -10%.")
@click.option("--work", type=_Percent(), metavar="CHANGE", help="All that is asked for, such as +20%.")
@click.option(
    "--utilization", type=_Percent(), metavar="PART", help="So much of the machines is used, such as 60%."
)
@click.option(
    "--move", "moves", multiple=True, metavar="POOL:N:FROM:TO[@WHEN]",
    help=f"N machines of POOL get another use; {', '.join(USES)}, or `own` for what no reclaim has.",
)  # fmt: skip
@click.option(
    "--notice", "notices", multiple=True, metavar="CONTRACT:SIDE[@WHEN]",
    help="CONTRACT gets notice by `tenant` or `operator`.",
)  # fmt: skip
@_quarters_option
@_basis_option
@json_option
def what_if(
    pool: str | None,
    price: str | None,
    work: str | None,
    utilization: str | None,
    moves: tuple[str, ...],
    notices: tuple[str, ...],
    quarters: int,
    basis_days: int,
    as_json: bool,
) -> None:
    """Show what is expected of the quarters to come, as it is and with changes. It changes nothing.

    \b
    taas economics what-if --price -10% --work +20%
    taas economics what-if --move llama-70b:4:own:research@90d --move llama-70b:2:recsys:own
    taas economics what-if --notice con_0f3a…:operator --utilization 70%
    """
    body = given(
        pool=pool, quarters=quarters, basis_days=basis_days, price_change=price, work_change=work,
        utilization=utilization, moves=[_move(text) for text in moves],
        notices=[_notice(text) for text in notices],
    )  # fmt: skip
    answer = call("POST", "economics", "what-if", body=body)
    if as_json:
        print_json(answer)
    else:
        print_compared(answer)


def print_compared(answer: Mapping[str, Any]) -> None:
    """By quarter, by use, and in all."""
    click.echo(
        f"from {minute(answer['from'])} until {minute(answer['until'])} (UTC), USD; requests as in the last "
        f"{answer['basis_days']} days\n"
    )
    quarters = [*answer["by_quarter"], {**answer["total"], "quarter": "total"}]
    print_table({"QUARTER": "quarter", **_COMPARED}, quarters)
    click.echo()
    print_table({"USE": "use", **_COMPARED}, answer["by_use"])


def _move(text: str) -> dict[str, Any]:
    rest, _, when = text.partition("@")
    pool, *others = rest.split(":")
    uses = (*USES, _OWN)
    if len(others) != 3 or not others[0].isdecimal() or others[1] not in uses or others[2] not in uses:
        raise click.BadParameter(
            f"{text!r} is not POOL:N:FROM:TO, with uses {', '.join(uses)}", param_hint="--move"
        )
    count, *sides = others
    was, will = (None if side == _OWN else side for side in sides)
    moved = given(pool=pool, instances=int(count), from_use=was, to_use=will)
    return moved | given(**{"from": _moment(when, "--move")})


def _notice(text: str) -> dict[str, Any]:
    rest, _, when = text.partition("@")
    contract, _, side = rest.partition(":")
    if side not in {"tenant", "operator"}:
        raise click.BadParameter(
            f"{text!r} is not CONTRACT:tenant or CONTRACT:operator", param_hint="--notice"
        )
    return {"contract": contract, "by": side} | given(at=_moment(when, "--notice"))


def _moment(when: str, option: str) -> str | None:
    now = datetime.now(UTC)
    return rfc3339(resolve(when, now=now, anchor=now, option=option)) if when else None


def _taken(side: str, name: str) -> Any:
    return lambda row: row[side][name]


_TAKE_BACK: Columns = {
    "QUARTER": "quarter", "FROM (UTC)": at("from"), "MACHINES": _taken("without_notice", "machines"),
    "LOST REVENUE": lambda row: rounded(row["without_notice"]["lost_revenue"]),
    "COST MOVED": lambda row: rounded(row["without_notice"]["cost_moved"]),
    "WITH NOTICE NOW": _taken("with_notice", "machines"),
    "THEN LOST": lambda row: rounded(row["with_notice"]["lost_revenue"]),
    "THEN MOVED": lambda row: rounded(row["with_notice"]["cost_moved"]),
    "NOTICE TO": _taken("with_notice", "notices"),
}  # fmt: skip
_EXPECTED: Columns = {
    "QUARTER": "quarter", "USE": "use", "REVENUE": number("revenue"), "COST": number("cost"),
    "MARGIN": number("margin"), "MACHINE-H": number("machine_hours"),
    "SOLD": lambda row: rounded(row["unit_hours"]["sold"]),
    "LENT": lambda row: rounded(row["unit_hours"]["lent"]),
    "IDLE": lambda row: rounded(row["unit_hours"]["idle"]),
    "OTHER USE": lambda row: rounded(row["unit_hours"]["other"]),
    "ECON. %": number("economic_utilization_percentage"),
}  # fmt: skip
_ASSURED: Columns = {
    "CONTRACT": "contract", "TENANT": "tenant_name", "ENDS (UTC)": at("ends"),
    "SURE UNTIL (UTC)": at("assured_until"), "UNIT-H": number("assured_unit_hours"),
    "REVENUE": number("assured_revenue"),
}  # fmt: skip


@click.command("plan")
@click.option("--pool", help="Of this pool only.")
@_quarters_option
@_basis_option
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write charts and the table to this file; it opens without a network.",
)  # fmt: skip
@json_option
def plan(pool: str | None, quarters: int, basis_days: int, html: Path | None, as_json: bool) -> None:
    """Show what is expected of the quarters to come, and how many machines can be taken back at the start of
    each, for good: without a notice, and with notice given now; what revenue that loses until the end of the
    plan, and the machines' cost that goes with them.
    """
    answer = call(
        "GET", "economics", "plan", query={"pool": pool, "quarters": quarters, "basis_days": basis_days}
    )
    if html is not None:
        html.write_text(_page(answer), encoding="utf-8")
    if as_json:
        print_json(answer)
        return
    if html is not None:
        click.echo(f"{html} is written")
        return
    for each in answer["data"]:
        count = each["machines"]
        click.echo(f"{each['pool']}: {count} {'machine' if count == 1 else 'machines'}\n")
        if count == 0:
            click.echo(f"it has no machines: `taas pool set {each['pool']} --instances N`\n", err=True)
        _print_titled("expected, USD and unit-hours", _EXPECTED, each["expected"])
        _print_titled("can be taken back, from then on", _TAKE_BACK, each["take_back"])
        _print_titled(
            "contracts, and what they bring if their tenant gives notice now", _ASSURED, each["contracts"]
        )


def _page(answer: Mapping[str, Any]) -> str:
    """What is expected of all pools, and what of each can be taken back."""
    lines = [{**line, "pool": each["pool"]} for each in answer["data"] for line in each["expected"]]
    about = f"Expected, with requests as in the last {answer['basis_days']} days."
    charts = [
        chart(
            f"{each['pool']}: machines that can be taken back from the start of each quarter on",
            [at["quarter"] for at in each["take_back"]],
            [
                Series(name, [at[side]["machines"] for at in each["take_back"]])
                for name, side in (("without notice", "without_notice"), ("with notice now", "with_notice"))
            ],
        )
        for each in answer["data"]
    ]
    return page({**answer, "lines": lines, "by": ["quarter", "pool", "use"]}, about, charts)


def print_money(money: Mapping[str, Any]) -> None:
    """What a reclaim costs."""
    click.echo(
        f"\nwhat it costs until {minute(money['until'])} (UTC), USD; requests as in the last "
        f"{money['basis_days']} days:"
    )
    columns: Columns = {
        "LOST REVENUE": number("lost_revenue"), "CREDITS": number("credits"),
        "UNIT-H SHORT": number("short_unit_hours"),
    }  # fmt: skip
    total: Row = {**money, "quarter": "total"}
    print_table(
        {"QUARTER": "quarter", **columns, "COST MOVED": number("cost_moved")}, [*money["by_quarter"], total]
    )
    if money["contracts"]:
        click.echo()
        print_table({"CONTRACT": "contract", **columns}, money["contracts"])


def _print_titled(title: str, columns: Columns, rows: Sequence[Row]) -> None:
    if rows:
        click.echo(f"{title}:")
        print_table(columns, rows)
        click.echo()
