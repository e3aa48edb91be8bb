"""What a load test found, as tables for people and as one object for programs."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from loadtest.outcome import Ending, Outcome
from loadtest.quantiles import quantile_ms
from loadtest.receipts import Comparison

_SHARES = (0.5, 0.9, 0.99)
_DISAGREEMENTS_SHOWN = 10


def summarize(
    outcomes: list[Outcome], not_sent: int, seconds: float, comparison: Comparison | None
) -> dict[str, Any]:
    """All figures; times in ms."""
    first = [outcome.first_text_s for outcome in outcomes if outcome.first_text_s is not None]
    gaps = [outcome.seconds_per_token for outcome in outcomes if outcome.seconds_per_token is not None]
    endings = Counter(outcome.ending.value for outcome in outcomes)
    summary: dict[str, Any] = {
        "calls": len(outcomes),
        "not_sent": not_sent,
        "calls_per_s": round(len(outcomes) / seconds, 2),
        "text_events_per_s": round(sum(outcome.text_events for outcome in outcomes) / seconds, 1),
        "endings": {ending.value: endings.get(ending.value, 0) for ending in Ending},
        "refusals": dict(
            Counter(str(outcome.code) for outcome in outcomes if outcome.ending is Ending.REFUSED)
        ),
        "failures": dict(
            Counter(
                str(outcome.code) for outcome in outcomes if outcome.ending in (Ending.ERROR, Ending.BROKEN)
            )
        ),
        "ttft_ms": {f"p{share * 100:g}": quantile_ms(first, share) for share in _SHARES},
        "ms_per_token": {f"p{share * 100:g}": quantile_ms(gaps, share) for share in _SHARES},
    }
    if comparison is not None:
        summary["tokens"] = {
            "receipts": comparison.receipts, "received_output": comparison.received_output,
            "billed_output": comparison.billed_output, "billed_prompt": comparison.billed_prompt,
            "absorbed_output": comparison.absorbed_output, "disagreements": comparison.disagreements,
        }  # fmt: skip
    return summary


def show(summary: dict[str, Any]) -> None:
    """Print it."""
    console = Console()
    console.print(
        f"{summary['calls']} streams, {summary['calls_per_s']} a second, {summary['text_events_per_s']} "
        "pieces of text a second"
    )
    table = Table()
    table.add_column("")
    for share in summary["ttft_ms"]:
        table.add_column(share, justify="right")
    table.add_row("time to first token, ms", *map(_shown, summary["ttft_ms"].values()))
    table.add_row("time per output token, ms", *map(_shown, summary["ms_per_token"].values()))
    console.print(table)
    console.print("ended: " + ", ".join(f"{ending} {count}" for ending, count in summary["endings"].items()))
    for title in ("refusals", "failures"):
        if summary[title]:
            console.print(
                f"{title}: " + ", ".join(f"{code} {count}" for code, count in summary[title].items())
            )
    if summary["not_sent"]:
        console.print(f"not sent, because --streams were open already: {summary['not_sent']}")
    if tokens := summary.get("tokens"):
        _show_tokens(console, tokens)


def _show_tokens(console: Console, tokens: dict[str, Any]) -> None:
    console.print(
        f"output tokens: received {tokens['received_output']:,}, billed {tokens['billed_output']:,}, "
        f"absorbed {tokens['absorbed_output']:,}; "
        f"prompt tokens billed {tokens['billed_prompt']:,}; {tokens['receipts']} receipts"
    )
    wrong = tokens["disagreements"]
    if not wrong:
        console.print("every bill agrees with what was received")
        return
    console.print(f"{len(wrong)} bills disagree with what was received:", style="bold red")
    for line in wrong[:_DISAGREEMENTS_SHOWN]:
        console.print(f"  {line}", highlight=False)


def write(summary: dict[str, Any], path: Path) -> None:
    """All figures as JSON."""
    path.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
