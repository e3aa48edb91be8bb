"""What `taas` prints: tables for people, JSON for programs. Knows no noun."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

# Through a pipe nothing is cut off to the width of a screen that is not there.
_PIPE_COLUMNS: Final = 1000
_WHOLE_FROM: Final = 100

Row = Mapping[str, Any]
# Heading → what to show of a row: the name of a field, or a function of the row.
Columns = Mapping[str, str | Callable[[Row], Any]]

limit_option = click.option("--limit", type=click.IntRange(1), help="At most this many rows. Default: all.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def show(answer: Any, as_json: bool, columns: Columns, *, empty: str = "none") -> None:
    """A listing (`{"data": […]}`) as a table, or as it came."""
    if as_json:
        print_json(answer)
    elif rows := answer["data"]:
        print_table(columns, rows)
    else:
        click.echo(empty)


def print_json(answer: Any) -> None:
    """As it came, readable."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_fields(fields: Mapping[str, Any]) -> None:
    """One thing, a line a field."""
    print_table({"": lambda row: row["name"], " ": lambda row: row["value"]}, as_rows(fields), headings=False)


def as_rows(fields: Mapping[str, Any]) -> list[Row]:
    """A row for each field."""
    return [{"name": name, "value": value} for name, value in fields.items()]


def print_table(
    columns: Columns, rows: Iterable[Row], *, headings: bool = True, footer: Sequence[str] = ()
) -> None:
    """Numbers to the right, all else to the left; what is null is `-`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[_cell(row, column) for column in columns.values()] for row in rows]
    table = Table(
        box=None,
        pad_edge=False,
        show_header=headings,
        show_footer=bool(footer),
        header_style="bold",
        footer_style="bold",
    )
    for index, heading in enumerate(columns):
        shown = [line[index] for line in cells if line[index] is not None]
        right = bool(shown) and all(map(_is_number, shown))
        foot = footer[index] if footer else ""
        table.add_column(heading, justify="right" if right else "left", overflow="fold", footer=foot)
    for line in cells:
        table.add_row(*(Text(_word(cell)) for cell in line))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_COLUMNS)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def moment(field: str) -> Callable[[Row], str | None]:
    """Shows a field of milliseconds as UTC."""
    return lambda row: second(row[field])


def second(at_ms: int | None) -> str | None:
    """The same of one moment: 2026-11-28 01:05:00."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def at(field: str) -> Callable[[Row], str | None]:
    """Shows a field of RFC 3339 to the minute: 2026-11-28 01:05."""
    return lambda row: minute(row[field])


def minute(moment: str | None) -> str | None:
    """The same of one moment."""
    return None if moment is None else moment[:16].replace("T", " ")


def number(field: str) -> Callable[[Row], str | None]:
    """Shows a field of decimals as people read it: 25,603; 12.5."""
    return lambda row: rounded(row[field])


def rounded(decimal: str | float | None) -> str | None:
    """Whole from a hundred on, else with at most two decimals. JSON has all of them."""
    if decimal is None:
        return None
    value = float(decimal)
    if abs(value) >= _WHOLE_FROM:
        return f"{value:,.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def percent(part: str) -> str:
    """10 % for 0.1."""
    return f"{rounded(float(part) * 100)} %"


def _cell(row: Row, column: str | Callable[[Row], Any]) -> Any:
    return row.get(column) if isinstance(column, str) else column(row)


def _word(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, list | tuple):
        return ", ".join(map(str, cell)) or "-"
    return str(cell)


def _is_number(cell: Any) -> bool:
    if isinstance(cell, int):
        return not isinstance(cell, bool)
    return isinstance(cell, str) and cell.lstrip("-$").replace(",", "").replace(".", "", 1).isdecimal()
