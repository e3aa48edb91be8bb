"""`taas plan`: what machines are for over coming quarters, as a table and as bars."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from deploy.cli.connection import call
from deploy.cli.output import Columns, Row, json_option, print_json, print_table

# A machine a mark or more, as long as that fits; a letter beside the colour, because not every screen has colours.
_BAR_CHARS: Final = 48
_MARKS: Final = {
    "external": ("█", "green"),
    "internal": ("▓", "cyan"),
    "research": ("▒", "magenta"),
    "recsys": ("░", "yellow"),
    "idle": ("·", "white"),
}


@click.command()
@click.option("--pool", help="Of this pool only.")
@click.option(
    "--quarters", type=click.IntRange(1, 40), default=4, show_default=True, help="So many, this one included."
)
@json_option
def plan(pool: str | None, quarters: int, as_json: bool) -> None:
    """Which machines are for what, and what of them is signed and free: per quarter, and at each change inside one.

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
    of_each = "not measured" if measured is None else f"{measured} units/s each"
    click.echo(f"{pool['pool']}: {pool['instances']} machines, {of_each}")
    periods = pool["periods"]
    uses = sorted({use for period in periods for use in period["machines"]}, key=list(_MARKS).index)
    columns: Columns = {
        "QUARTER": "quarter", "FROM (UTC)": "from", "UNTIL (UTC)": "until",
        **{use.upper(): _machines_for(use) for use in uses},
        "MAY BE SOLD": "capacity", "SIGNED": "signed", "FREE": "free", "SHORT": "short",
    }  # fmt: skip
    print_table(columns, periods)
    if pool["instances"]:
        click.echo()
        for line in chart(periods, pool["instances"]):
            click.echo(line)
        click.echo("  ".join(f"{click.style(_MARKS[use][0], fg=_MARKS[use][1])} {use}" for use in uses))


def _machines_for(use: str) -> Callable[[Row], int]:
    return lambda row: int(row["machines"].get(use, 0))


def chart(periods: Sequence[Mapping[str, Any]], machines: int) -> list[str]:
    """A line for each period: its machines by use, then how much of what may be sold is signed."""
    wide = machines * max(1, _BAR_CHARS // 2 // machines) if machines <= _BAR_CHARS else _BAR_CHARS
    lines = []
    for period in periods:
        bar, drawn, counted = "", 0, 0
        for use in sorted(period["machines"], key=list(_MARKS).index):
            # Ends are rounded, not lengths, so that every bar is as long as the pool.
            counted += period["machines"][use]
            end = min(wide, round(counted * wide / machines))
            bar += click.style(_MARKS[use][0] * (end - drawn), fg=_MARKS[use][1])
            drawn = end
        lines.append(f"{period['quarter']} {period['from'][:16]} {bar}{' ' * (wide - drawn)} {_signed(period)}")
    return lines


def _signed(period: Mapping[str, Any]) -> str:
    capacity, signed = float(period["capacity"]), float(period["signed"])
    if capacity == 0:
        return "signed with nothing to sell" if signed else "nothing to sell"
    return f"{signed / capacity:4.0%} signed"
