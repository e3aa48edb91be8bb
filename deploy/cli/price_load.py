"""`taas price load`: prices out of a file, all or none, once it is seen what they do."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import click

from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call
from deploy.cli.moments import resolve, rfc3339
from deploy.cli.output import Columns, Row, json_option, print_json, print_table

_BYTES_MAX: Final = 1_000_000


def _change(row: Row) -> str:
    before, after = Decimal(row["before"]), Decimal(row["after"])
    return f"{(after - before) / before * 100:+.2f} %" if before else "-"


_LINES: Columns = {
    "MODEL": "model", "CLASS": "class", "REQUESTS": "requests", "BEFORE (USD)": "before",
    "AFTER (USD)": "after", "CHANGE": _change, "UNPRICED": "unpriced",
}  # fmt: skip


_KINDS: Final = ("input", "cached_input", "cache_write", "output")
_PRICES: Columns = {
    "MODEL": "model", "FOR": "for", "TOKENS": "kind", "OLD (USD)": "old", "NEW (USD)": "new",
    "": "much",
}  # fmt: skip


def _changes(prices: Sequence[Row]) -> Iterator[Row]:
    """A row for each price of a kind of tokens that would be another."""
    for each in prices:
        words = [each["contract"], each["class"]]
        whom = " ".join(word for word in words if word) or "all"
        before = each["before"] or {}
        for kind in _KINDS:
            old, new = before.get(kind), each[kind]
            if old != new:
                yield {
                    "model": each["model"], "for": whom, "kind": kind, "old": old or "none", "new": new,
                    "much": "over 10 times" if each["changes_much"] else "",
                }  # fmt: skip


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only show what the prices would do.")
@click.option(
    "--sample", type=click.IntRange(1, 20_000), metavar="N",
    help="Rate so many of each model's newest requests. Default: 2000.",
)  # fmt: skip
@yes_option
@json_option
def load(file: Path, dry_run: bool, sample: int | None, yes: bool, as_json: bool) -> None:
    """Set the prices in FILE (YAML or JSON), all or none. First it shows how each price changes, and what the
    newest recorded requests of these models (of the last 35 days) cost by the prices of now and by those, and
    asks.

    \b
    prices:
      - {model: llama-70b, input: "0.15", cached_input: "0.03", output: "0.60", from: 2027-01-01}
      - {model: llama-70b, class: batch, discount: 50}
      - {model: llama-70b, contract: con_0f3a…, class: on_demand, input: "0.20", output: "0.80"}
    \b
    taas price load prices.yaml --dry-run
    """
    prices = _read(file)
    asked: dict[str, Any] = {"prices": prices}
    if sample is not None:
        asked["sample"] = sample
    trial = call("POST", "prices", "list", body={**asked, "dry_run": True})
    if not as_json:
        for columns, rows in ((_PRICES, list(_changes(trial["prices"]))), (_LINES, trial["lines"])):
            if rows:
                print_table(columns, rows)
                click.echo()
        click.echo(f"{_count(trial)} would be set")
    if dry_run:
        if as_json:
            print_json(trial)
        return
    require_answerable(yes=yes, as_json=as_json)
    much = sum(each["changes_much"] for each in trial["prices"])
    by_much = f", {much} of which change{'s' if much == 1 else ''} by more than 10 times" if much else ""
    confirm(f"set {_count(trial)}{by_much}?", yes=yes)
    # What was not shown to change so much is refused if it does by now.
    done = call("POST", "prices", "list", body={**asked, "confirmed": yes or much > 0})
    if as_json:
        print_json(done)
    else:
        click.echo(f"{_count(done)} set")


def _count(answer: Row) -> str:
    count = len(answer["prices"])
    return f"{count} price{'s' if count > 1 else ''}"


def _read(file: Path) -> list[dict[str, Any]]:
    """The list in a file. Dates are given on as texts."""
    import yaml

    try:
        if file.stat().st_size > _BYTES_MAX:
            raise click.ClickException(f"{file}: a file of prices has at most {_BYTES_MAX} bytes")
        read = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 (texts only)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise click.ClickException(f"{file}: {exc}") from exc
    prices = read.get("prices") if isinstance(read, dict) else read
    if not isinstance(prices, list) or not all(isinstance(each, dict) for each in prices) or not prices:
        raise click.ClickException(f"{file}: no list of prices; see `taas price load --help`")
    # Spans count from one moment: prices of one file begin together.
    now = datetime.now(UTC)
    return [{name: _value(name, value, now) for name, value in each.items()} for each in prices]


def _value(name: str, text: Any, now: datetime) -> Any:
    """Prices are texts; the few numbers and truth values are not."""
    if name == "discount" and isinstance(text, str) and text.isdecimal():
        return int(text)
    if name == "free":
        return text == "true"
    if name == "from" and isinstance(text, str):
        return rfc3339(resolve(text, now=now, anchor=now, option="from"))
    return text
