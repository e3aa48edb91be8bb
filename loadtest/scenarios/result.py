"""What a scenario found: figures, and verdicts on those that were promised; as a table for people and as
JSON for programs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

# Where the output is no terminal, rich would take 80.
_WIDTH_MIN = 140


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise: a value within [low, high]. A value that could not be measured keeps no promise."""

    what: str
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool:
        """Whether the promise was kept."""
        if self.value is None:
            return False
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    @property
    def wanted(self) -> str:
        """The promise in words."""
        match self.low, self.high:
            case None, None:
                return "any"
            case None, high:
                return f"≤ {_shown(high)}"
            case low, None:
                return f"≥ {_shown(low)}"
            case low, high:
                return f"{_shown(low)} … {_shown(high)}"


def at_most(what: str, value: float | None, high: float) -> Verdict:
    """value ≤ high."""
    return Verdict(what, value, None, high)


def at_least(what: str, value: float | None, low: float) -> Verdict:
    """value ≥ low."""
    return Verdict(what, value, low, None)


def near(what: str, value: float | None, target: float, share: float) -> Verdict:
    """value within target · (1 ± share)."""
    return Verdict(what, value, target * (1 - share), target * (1 + share))


@dataclass(slots=True)
class Result:
    """One scenario."""

    name: str
    verdicts: list[Verdict]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether every promise was kept; a scenario that promises nothing has measured nothing."""
        return bool(self.verdicts) and all(verdict.met for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """For `scenarios.json`."""
        promises = [
            {
                "what": verdict.what,
                "value": verdict.value,
                "low": verdict.low,
                "high": verdict.high,
                "met": verdict.met,
            }
            for verdict in self.verdicts
        ]
        return {"met": self.met, "verdicts": promises, "figures": self.figures}


def show(result: Result) -> None:
    """Print it."""
    console = Console()
    console.width = max(console.width, _WIDTH_MIN)
    table = Table(title=result.name, title_justify="left")
    for heading in ("", "measured", "promised", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for verdict in result.verdicts:
        mark = "[green]met[/green]" if verdict.met else "[bold red]missed[/bold red]"
        table.add_row(verdict.what, _shown(verdict.value), verdict.wanted, mark)
    for what, value in result.figures.items():
        if value not in ({}, None):
            table.add_row(what, _shown(value), "", "")
    console.print(table)


def write(results: Sequence[Result], path: Path) -> None:
    """Add these to what the file holds of other scenarios."""
    known: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
    for result in results:
        known[result.name] = {"measured_ms": int(time.time() * 1000), **result.as_json()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(known, option=orjson.OPT_INDENT_2) + b"\n")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(part)}" for name, part in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
