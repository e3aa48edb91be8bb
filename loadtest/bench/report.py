"""Medians over the rounds, as a table for people and as JSON for programs."""

from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

Round = dict[str, dict[str, Any]]

# name in the JSON, heading, load, figure of the load
_FIGURES = (
    ("cpu_us_request", "CPU µs/request\n64 connections", "plain64", "cpu_us_request"),
    ("cpu_us_request_1", "CPU µs/request\n1 connection", "plain1", "cpu_us_request"),
    ("valkey_us_request", "Valkey's CPU µs/request\n64 connections", "plain64", "valkey_us_request"),
    ("valkey_us_request_1", "Valkey's CPU µs/request\n1 connection", "plain1", "valkey_us_request"),
    ("both_us_request", "both\n64 connections", "plain64", "both_us_request"),
    ("both_us_request_1", "both\n1 connection", "plain1", "both_us_request"),
    ("cpu_us_token", "CPU µs/token\n64 streams, 10 ms", "paced", "cpu_us_token"),
    ("cpu_us_token_usage", "CPU µs/token\nusage on chunks", "paced_usage", "cpu_us_token"),
    ("cpu_us_token_burst", "CPU µs/token\nburst", "burst", "cpu_us_token"),
    ("p50_ms", "p50 ms\n1 connection", "plain1", "p50_ms"),
    ("p99_ms", "p99 ms\n64 connections", "plain64", "p99_ms"),
    ("requests_per_s", "requests/s\n64 connections", "plain64", "requests_per_s"),
    ("tokens_per_s", "tokens/s\nburst", "burst", "tokens_per_s"),
    ("ttft_ms_p50", "TTFT p50 ms\n64 streams", "paced", "ttft_ms_p50"),
    ("gap_ms_p99", "gap p99 ms\n64 streams", "paced", "gap_ms_p99"),
)


def summarize(rounds: list[Round]) -> dict[str, Any]:
    """The median of each figure, and of all rounds the two that matter, to show how far they scatter."""
    summary: dict[str, Any] = {}
    for name, _, load, figure in _FIGURES:
        found = [one.get(load, {}).get(figure) for one in rounds]
        values = [value for value in found if value is not None]
        summary[name] = round(median(values), 2) if values else None
    for name, load, figure in (
        ("cpu_us_request", "plain64", "cpu_us_request"),
        ("cpu_us_token", "paced", "cpu_us_token"),
    ):
        summary[f"{name}_rounds"] = [one[load][figure] for one in rounds if load in one]
    return summary


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="A proxy alone on one core (medians)")
    table.add_column("")
    names = list(results)
    for name in names:
        table.add_column(name, justify="right")
    for figure, heading, _, _ in _FIGURES:
        table.add_row(heading.replace("\n", ", "), *(_shown(results[name].get(figure)) for name in names))
    table.add_row("RSS MB", *(_shown(results[name].get("rss_mb")) for name in names))
    Console().print(table)


def show_problems(results: dict[str, dict[str, Any]]) -> None:
    """Print what went wrong."""
    for name, result in results.items():
        for problem in result["problems"]:
            Console(stderr=True).print(f"[red]{name}[/red] {problem}", markup=True)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"


def write(results: dict[str, dict[str, Any]], path: Path) -> None:
    """`{name: {cpu_us_request, cpu_us_token, …}}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
