"""`taas price import`: proposes cost prices from a list of providers' prices. A person confirms them.

The list is the package genai-prices, read offline as it is installed. It has prices of USD per million tokens
and no dates of ours: what it proposes holds from now on.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import click

from billing.wire.engine_kinds import PROVIDERS
from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import call, call_list, given
from deploy.cli.output import Columns, Row, json_option, print_json, print_table

# Our four prices, by the names of the list.
_NAMES: Final = {
    "input": "input_mtok", "cached_input": "cache_read_mtok", "cache_write": "cache_write_mtok",
    "output": "output_mtok",
}  # fmt: skip
_OPTIONAL: Final = frozenset({"cached_input", "cache_write"})


@dataclass(frozen=True, slots=True)
class _Proposal:
    """What the list says of one instance, beside what holds there. `note`: why nothing is proposed, or what
    the list says that a price here cannot.
    """

    instance: Row
    now: Row | None
    proposed: dict[str, str] | None
    note: str = ""

    @property
    def changes(self) -> bool:
        if self.proposed is None or self.now is None:
            return self.proposed is not None
        filled = {name: self.proposed.get(name, self.proposed["input"]) for name in _NAMES}
        return any(Decimal(self.now[name]) != Decimal(price) for name, price in filled.items())


_COLUMNS: Columns = {
    "MODEL": "model", "AT": "instance", "ITS NAME THERE": "engine_model", "INPUT": "input",
    "CACHED INPUT": "cached_input", "CACHE WRITE": "cache_write", "OUTPUT": "output", "NOTE": "note",
}  # fmt: skip


@click.command("import")
@click.argument("source", type=click.Choice(["genai-prices"]), metavar="genai-prices")
@click.option("--model", help="Of this model only.")
@click.option(
    "--provider",
    metavar="ID",
    help="The provider's id in the list, if the instance's URL does not say it: openai, anthropic, groq.",
)
@yes_option
@json_option
def import_prices(source: str, model: str | None, provider: str | None, yes: bool, as_json: bool) -> None:
    """Propose cost prices of all provider instances, show what would change, and ask.

    They hold from now on, for each instance by itself. What is not in the list is named and left as it is.

    \b
    taas price import genai-prices
    taas price import genai-prices --model big --yes
    """
    instances = [
        row
        for row in call_list("instances", query={"model": model})["data"]
        if row["engine"] in PROVIDERS and not row["removed"]
    ]
    held = _held(call_list("cost-prices", query={"model": model})["data"])
    proposals = [_propose(row, held, provider) for row in instances]
    changed = [each for each in proposals if each.changes]
    if not as_json:
        _print(proposals, changed)
    if changed:
        require_answerable(yes=yes, as_json=as_json)
        confirm("set these cost prices?", yes=yes)
    made = [_set(each) for each in changed]
    if as_json:
        print_json({"data": made})
    elif made:
        click.echo(f"{len(made)} cost prices are set")


def _held(prices: list[Row]) -> dict[tuple[str, str | None], Row]:
    """What holds now, by model and instance."""
    now_ms = datetime.now(UTC).timestamp() * 1000
    newest_last = sorted((row for row in prices if row["from_ms"] <= now_ms), key=lambda row: row["from_ms"])
    return {(row["model"], row["instance"]): row for row in newest_last}


def _propose(instance: Row, held: dict[tuple[str, str | None], Row], provider: str | None) -> _Proposal:
    model = instance["model"]
    now = held.get((model, instance["instance"])) or held.get((model, None))
    name = instance["engine_model"] or call("GET", "models", model)["engine_model"]
    instance = {**instance, "engine_model": name}
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError as exc:
        raise click.ClickException("install the list first: pip install 'taas[prices]'") from exc
    try:
        url = None if provider else instance["url"]
        _, found = get_snapshot().find_provider_model(name, None, provider, url)
    except LookupError:
        note = "not in the list" if provider else "not in the list, or its URL is not (see --provider)"
        return _Proposal(instance, now, None, note)
    return _read(instance, now, found.get_prices(datetime.now(UTC)))


def _read(instance: Row, now: Row | None, prices: Any) -> _Proposal:
    """A price of the list in our four. Its `tiers` have a price of their own for long prompts."""
    read: dict[str, str] = {}
    tiered = False
    for name, theirs in _NAMES.items():
        price = getattr(prices, theirs, None)
        tiered = tiered or hasattr(price, "tiers")
        price = getattr(price, "base", price)
        if price is not None:
            read[name] = f"{Decimal(price).normalize():f}"
        elif name not in _OPTIONAL:
            return _Proposal(instance, now, None, f"the list has no price of {name} by the token")
    return _Proposal(instance, now, read, "dearer for long prompts, which is left out" if tiered else "")


def _change(row: _Proposal, name: str) -> str:
    now = "-" if row.now is None else row.now[name]
    if row.proposed is None:
        return str(now)
    proposed = row.proposed.get(name, row.proposed["input"])
    return proposed if row.now and Decimal(now) == Decimal(proposed) else f"{now} → {proposed}"


def _set(proposal: _Proposal) -> Any:
    assert proposal.proposed is not None
    instance = {name: proposal.instance[name] for name in ("model", "instance")}
    return call("POST", "cost-prices", body=given(**instance, **proposal.proposed, confirmed=True))


def _print(proposals: list[_Proposal], changed: list[_Proposal]) -> None:
    if not proposals:
        click.echo("no instance is a provider's; add one with `taas instance add --provider …`")
        return
    shown = [
        {**each.instance, **{name: _change(each, name) for name in _NAMES}, "note": each.note}
        for each in proposals
    ]
    print_table(_COLUMNS, shown)
    if not changed:
        click.echo("nothing would change")
