"""The report of `taas economics` as one HTML page: charts in SVG and a table, with nothing to load."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Any, Final

from deploy.cli.economics_columns import FIGURES

Line = Mapping[str, Any]
_WIDTH: Final = 960
_HEIGHT: Final = 300
_LEFT: Final = 76
_BELOW: Final = 44
_ABOVE: Final = 12
_TICKS: Final = 5
_LABELS_MAX: Final = 12
_COLOURS: Final = ("#2f6f9f", "#e39a34", "#4d9a62", "#b65a7a", "#7a69b3", "#8a8a8a", "#3aa6a6", "#a0522d")
_STYLE: Final = """
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222}
h1{font-size:1.4em}h2{font-size:1.05em;margin:2em 0 .3em}svg{width:100%;height:auto}
table{border-collapse:collapse;font-size:12px}td,th{padding:3px 9px;text-align:right;white-space:nowrap}
th{border-bottom:1px solid #999}td.n,th.n{text-align:left}.s{overflow-x:auto}.k{font-size:12px}
.k i{display:inline-block;width:11px;height:11px;margin:0 5px 0 16px;vertical-align:-1px}
p{color:#555}text{font:11px system-ui,sans-serif;fill:#444}
"""
_MONEY: Final = {"revenue": "revenue", "cost": "cost", "margin": "margin"}
_HOURS: Final = {"sold": "sold", "lent": "lent", "idle": "idle", "other": "in other use"}


@dataclass(frozen=True, slots=True)
class Series:
    """One value for each place of the axis; None: not known."""

    name: str
    values: Sequence[float | None]


def page(report: Mapping[str, Any], about: str, more: Sequence[str] = ()) -> str:
    """The whole file; `more` charts before its table."""
    lines, by = report["lines"], report["by"]
    time = [word for word in by if word in {"quarter", "month"}][-1:]
    axis = time or by[:1]
    places = list(dict.fromkeys(_name(line, axis) for line in lines)) or ["all"]
    rest = [word for word in by if word not in {"quarter", "month"} and word not in axis]
    parts = [
        f"<h1>Economics</h1><p>{escape(report['from'])} to {escape(report['until'])} (UTC), "
        f"{escape(report['currency'])}, by {escape(', '.join(by) or 'nothing')}. "
        f"{escape(about)}</p>",
        chart("Revenue, cost and margin, USD", places, _sums(lines, axis, places, _MONEY, _plain)),
        chart("Unit-hours", places, _sums(lines, axis, places, _HOURS, _unit_hours), stacked=True),
    ]
    if rest:
        for title, figure in (("Margin, USD", "margin"), ("Revenue, USD", "revenue")):
            groups = list(dict.fromkeys(_name(line, rest) for line in lines))
            series = [
                Series(group, _of(lines, axis, places, lambda line, group=group, figure=figure: (  # type: ignore[misc]
                    _plain(line, figure) if _name(line, rest) == group else None)))
                for group in groups[: len(_COLOURS)]
            ]  # fmt: skip
            left_out = "" if len(groups) <= len(_COLOURS) else f" (the first {len(_COLOURS)})"
            parts.append(chart(f"{title}, by {', '.join(rest)}{left_out}", places, series))
    parts += [*more, _table(report)]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Economics</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _name(line: Line, words: Sequence[str]) -> str:
    return " · ".join(str(line[word] or f"no {word}") for word in words) or "all"


def _plain(line: Line, figure: str) -> float | None:
    value = line[figure]
    return None if value is None else float(value)


def _unit_hours(line: Line, figure: str) -> float | None:
    return float(line["unit_hours"][figure])


def _sums(
    lines: Sequence[Line],
    axis: Sequence[str],
    places: Sequence[str],
    names: Mapping[str, str],
    read: Callable[[Line, str], float | None],
) -> list[Series]:
    return [
        Series(name, _of(lines, axis, places, lambda line, figure=figure: read(line, figure)))  # type: ignore[misc]
        for figure, name in names.items()
    ]


def _of(
    lines: Sequence[Line],
    axis: Sequence[str],
    places: Sequence[str],
    read: Callable[[Line], float | None],
) -> list[float | None]:
    sums: dict[str, float | None] = dict.fromkeys(places)
    for line in lines:
        value = read(line)
        if value is not None:
            place = _name(line, axis)
            sums[place] = (sums[place] or 0.0) + value
    return list(sums.values())


def chart(title: str, places: Sequence[str], series: Sequence[Series], *, stacked: bool = False) -> str:
    """Bars: side by side, or on top of each other."""
    low, high, step = _scale(series, len(places), stacked=stacked)
    tall = _HEIGHT - _BELOW - _ABOVE

    def height(value: float) -> float:
        return _ABOVE + (high - value) / (high - low) * tall

    drawn = [_grid(low, high, step, height)]
    slot = (_WIDTH - _LEFT - 8) / len(places)
    every = ceil(len(places) / _LABELS_MAX)
    for index, place in enumerate(places):
        left = _LEFT + index * slot
        if index % every == 0:
            drawn.append(
                f'<text x="{left + slot / 2:.1f}" y="{_HEIGHT - _BELOW + 18}" text-anchor="middle">'
                f"{escape(place)}</text>"
            )
        drawn.append(_bars(series, index, (left, slot), height, stacked=stacked))
    keys = "".join(
        f'<i style="background:{colour}"></i>{escape(each.name)}'
        for each, colour in zip(series, _COLOURS, strict=False)
    )
    return (
        f'<h2>{escape(title)}</h2><div class="k">{keys}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(drawn)}</svg>"
    )


def _bars(
    series: Sequence[Series],
    index: int,
    place: tuple[float, float],
    height: Callable[[float], float],
    *,
    stacked: bool,
) -> str:
    left, slot = place
    width = slot * 0.72 / (1 if stacked else len(series))
    base, drawn = 0.0, []
    for number, each in enumerate(series):
        value = each.values[index]
        if value is None:
            continue
        x = left + slot * 0.14 + (0 if stacked else number * width)
        top, bottom = sorted((height(base), height(base + value)))
        drawn.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{bottom - top:.1f}" fill="{_COLOURS[number % len(_COLOURS)]}">'
            f"<title>{escape(each.name)}: {value:,.2f}</title></rect>"
        )
        base += value if stacked else 0.0
    return "".join(drawn)


def _scale(series: Sequence[Series], places: int, *, stacked: bool) -> tuple[float, float, float]:
    """From where to where the axis goes, and the distance of its ticks: 1, 2 or 5 times a power of ten."""
    columns = [[each.values[index] or 0.0 for each in series] for index in range(places)]
    found = [sum(column) for column in columns] if stacked else [value for each in columns for value in each]
    low, high = min([0.0, *found]), max([0.0, *found])
    if low == high:
        return 0.0, 1.0, 1.0
    rough = (high - low) / _TICKS
    power = 10 ** floor(log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
    return floor(low / step) * step, ceil(high / step) * step, step


def _grid(low: float, high: float, step: float, height: Callable[[float], float]) -> str:
    drawn = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = height(value)
        colour = "#888" if abs(value) < step / 2 else "#e2e2e2"
        drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>')
        drawn.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    return "".join(drawn)


def _short(value: float) -> str:
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _table(report: Mapping[str, Any]) -> str:
    by = report["by"]
    head = "".join(f'<th class="n">{escape(word)}</th>' for word in by)
    head += "".join(f"<th>{escape(name.lower())}</th>" for name in FIGURES)
    total = {**report.get("total", {}), **dict.fromkeys(by, ""), **dict.fromkeys(by[:1], "total")}
    body = ""
    for line in (*report["lines"], *([total] if "total" in report else ())):
        names = "".join(_cell(line[word], " class=n") for word in by)
        figures = "".join(
            _cell(line[column] if isinstance(column, str) else column(line)) for column in FIGURES.values()
        )
        body += f"<tr>{names}{figures}</tr>"
    return f'<h2>Figures</h2><div class="s"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any, more: str = "") -> str:
    return f"<td{more}>{'–' if value is None else escape(str(value))}</td>"
