"""Gateways compared that differ in one thing: how many processes they have, or how many tenants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest.bench.subjects import Gateway, Subject

# What a request may cost more than in the first column of its table.
TOLERANCE: Final = 0.10
_TENANTS: Final = 10
_FIGURES: Final = (
    ("gateway, 64 connections", "cpu_us_request"),
    ("Valkey, 64 connections", "valkey_us_request"),
    ("both, 64 connections", "both_us_request"),
    ("gateway, 1 connection", "cpu_us_request_1"),
    ("Valkey, 1 connection", "valkey_us_request_1"),
    ("both, 1 connection", "both_us_request_1"),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """A gateway of so many processes with so many tenants."""

    processes: int = 1
    tenants: int = _TENANTS

    @property
    def name(self) -> str:
        """For people."""
        words = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{words}, {self.tenants:,} tenants"

    @property
    def make(self) -> Callable[[Path, list[int]], Subject]:
        """Make it, in this folder, in front of the backend's ports."""
        return partial(Gateway, processes=self.processes, tenants=self.tenants)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scales that are held against the first of them."""

    title: str
    scales: tuple[Scale, ...]


def comparisons(processes: Sequence[int], tenants: Sequence[int]) -> list[Comparison]:
    """What the command line asks for."""
    found = []
    if processes:
        found.append(Comparison("processes", tuple(Scale(processes=each) for each in processes)))
    if tenants:
        found.append(Comparison("tenants", tuple(Scale(tenants=each) for each in tenants)))
    return found


def is_within(figure: float, first: float) -> bool:
    """Whether a figure is more by no more than is tolerated."""
    return figure <= first * (1 + TOLERANCE)


def show_comparison(comparison: Comparison, results: dict[str, dict[str, Any]]) -> None:
    """Print CPU per request side by side."""
    table = Table(title=f"CPU µs per request, by {comparison.title}: within {TOLERANCE:.0%} of the first?")
    table.add_column("")
    measured = [results[scale.name] for scale in comparison.scales]
    for scale in comparison.scales:
        table.add_column(scale.name, justify="right")
    for heading, name in _FIGURES:
        figures = [result[name] for result in measured]
        first, *others = figures
        table.add_row(heading, f"{first:,}", *(_held_against(first, other) for other in others))
    Console().print(table)


def _held_against(first: float, figure: float) -> str:
    if not first:
        return f"{figure:,}"
    return f"{figure:,} ({figure / first - 1:+.1%}, {'yes' if is_within(figure, first) else 'NO'})"
