"""`taas plan`: what machines are for over coming quarters, as a table and as bars."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from deploy.cli.connection import call
from deploy.cli.output import Columns, Row, at, json_option, minute, number, print_json, print_table, rounded

# A mark beside the colour, because not every screen has colours.
_BAR_CHARS: Final = 48
_SOLD: Final = {"sold": ("█", "green"), "free": ("·", "white"), "short": ("░", "red")}
_USES: Final = ("external", "internal", "research", "recsys", "idle")


@click.command()
@click.option("--pool", help="Only of this pool.")
@click.option(
    "--quarters",
    type=click.IntRange(1, 40),
    default=4,
    show_default=True,
    help="How many quarters, including this one.",
)
@json_option
def plan(pool: str | None, quarters: int, as_json: bool) -> None:
    """Which machines are for what, and what of them is signed and free: per quarter, and at each change
    inside one.

    \b
    taas plan --pool llama-70b --quarters 8
    """
    answer = call("GET", "plan", query={"pool": pool, "quarters": quarters})
    if as_json:
        print_json(answer)
        return
    if not answer["data"]:
        click.echo("no pools; a model brings one: `taas model add`")
    for index, each in enumerate(answer["data"]):
        if index:
            click.echo()
        _print_pool(each)


def _print_pool(pool: Mapping[str, Any]) -> None:
    measured = pool["units_per_instance"]
    of_each = "not measured" if measured is None else f"{rounded(measured)} units/s each"
    count = pool["instances"]
    click.echo(f"{pool['pool']}: {count} machine{'' if count == 1 else 's'}, {of_each}")
    periods = pool["periods"]
    uses = sorted({use for period in periods for use in period["machines"]}, key=_USES.index)
    columns: Columns = {
        "QUARTER": "quarter", "FROM (UTC)": at("from"), "UNTIL (UTC)": at("until"),
        **{use.upper(): _machines_for(use) for use in uses}, "MAY BE SOLD, UNITS/S": number("capacity"),
        "SOLD": number("signed"), "FREE": number("free"), "SHORT": number("short"),
    }  # fmt: skip
    print_table(columns, periods)
    if pool["instances"]:
        click.echo()
        for line in chart(periods):
            click.echo(line)
        click.echo(
            "  ".join(f"{click.style(mark, fg=colour)} {what}" for what, (mark, colour) in _SOLD.items())
        )


def _machines_for(use: str) -> Callable[[Row], int]:
    return lambda row: int(row["machines"].get(use, 0))


def chart(periods: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each period: what of its units may be sold, is sold, and is sold and not there; all bars
    by the same scale.
    """
    widest = max((max(_figure(period, "capacity"), _sold(period)) for period in periods), default=0.0)
    lines = []
    for period in periods:
        capacity, sold = _figure(period, "capacity"), _sold(period)
        ends = [
            round(each / widest * _BAR_CHARS) if widest else 0
            for each in (min(sold, capacity), max(sold, capacity))
        ]
        rest = "free" if capacity >= sold else "short"
        bar = click.style(_SOLD["sold"][0] * ends[0], fg=_SOLD["sold"][1])
        bar += click.style(_SOLD[rest][0] * (ends[1] - ends[0]), fg=_SOLD[rest][1])
        lines.append(
            f"{period['quarter']} {minute(period['from'])} {bar}{' ' * (_BAR_CHARS - ends[1])} "
            f"{_said(capacity, sold)}"
        )
    return lines


def _figure(period: Mapping[str, Any], name: str) -> float:
    return float(period[name])


def _sold(period: Mapping[str, Any]) -> float:
    """With what bursts hold beside the rates."""
    short = _figure(period, "short")
    return _figure(period, "capacity") + (short or -_figure(period, "free"))


def _said(capacity: float, sold: float) -> str:
    if capacity == 0:
        return "sold, with nothing there" if sold else "nothing to sell"
    return f"{sold / capacity:4.0%} sold"
