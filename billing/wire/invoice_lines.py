"""The types of an invoice's lines: where each is posted, and what it is called everywhere. Pure.

`billing.invoices.lines` makes the lines. `deploy/taas_verify.py` has the types apart on purpose: it proves
what is said here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from billing.moments import HOUR_MS, utc

# As the document has it.
Line = Mapping[str, Any]
_KINDS: Final = {
    "uncached_input": "input", "cached_input": "cached input", "cache_write": "cache write",
    "output": "output",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LineType:
    """`account`: of the ledger, on which an invoice posts it; None: the ledger has it since it was recorded.
    `counts`: towards the minimum commitment of its period. `owed`: its name in economics, which read it from
    documents; None: they do not. `category` and `said`: in FOCUS. `brief`: for a table. `words`: what it is,
    how much of it, and at which price; given the name of the document's period, and those of projects.
    """

    account: str | None
    counts: bool
    owed: str | None
    category: str
    said: str
    brief: Callable[[Line], str]
    words: Callable[[Line, str, Mapping[str, str]], tuple[str, str, str]]


def _usage(line: Line, period: str, names: Mapping[str, str]) -> tuple[str, str, str]:
    late = "" if line["period"] == period else f", used in {line['period']}"
    of = f", contract {line['contract']}" if line["contract"] else ""
    project = names.get(line["project"], line["project"])
    what = f"{line['model']}, {_KINDS[line['kind']]} ({line['class']}{of}), project {project}{late}"
    return what, f"{line['tokens']:,} tokens", f"{line['price']} per million"


def _usage_in_brief(line: Line) -> str:
    names = ("period", "project", "model", "class", "contract", "kind")
    return " ".join(line[name] for name in names if line[name] is not None)


def _capacity(line: Line, *_: object) -> tuple[str, str, str]:
    units = line["milliunits_per_second"] / 1000
    hours = (line["until_ms"] - line["from_ms"]) / HOUR_MS
    what = f"Reserved capacity, contract {line['contract']}, from {utc(line['from_ms'])}"
    return what, f"{units:g} units/s × {hours:,.2f} h", f"{line['price_per_unit_hour']} per unit-hour"


def _sla_credit(line: Line, *_: object) -> tuple[str, str, str]:
    hours = line["milliunits_short"] / HOUR_MS
    what = f"Capacity that was short, contract {line['contract']}"
    return what, f"{hours:,.4f} unit-hours", f"{line['percent']} % of {line['price_per_unit_hour']}"


def _discount(line: Line, *_: object) -> tuple[str, str, str]:
    late = f", used in {line['period']}" if line["period"] else ""
    what = f"Volume discount above {line['above']} USD{late}"
    return what, f"{line['of']} USD", f"{line['percent']} %"


def _discount_in_brief(line: Line) -> str:
    late = f"{line['period']} " if line["period"] else ""
    return f"{late}{line['percent']} % above {line['above']}"


LINE_TYPES: Final = {
    "usage": LineType(
        account=None, counts=True, owed=None, category="Usage",
        said="{tokens} {kind} tokens of {model} at {price} USD per million",
        brief=_usage_in_brief, words=_usage,
    ),
    "discount": LineType(
        account="discount", counts=True, owed="volume discount", category="Adjustment",
        said="Volume discount of {percent} % of {of} USD",
        brief=_discount_in_brief, words=_discount,
    ),
    "covered": LineType(
        account="commitment", counts=False, owed="commitment", category="Adjustment",
        said="Late usage that the commitment of {period} covers",
        brief=lambda line: f"by the commitment of {line['period']}",
        words=lambda line, *_: (f"Covered by the commitment of {line['period']}", "", ""),
    ),
    "capacity": LineType(
        account="capacity", counts=True, owed=None, category="Purchase",
        said="Reserved capacity of {contract} at {price_per_unit_hour} USD per unit-hour",
        brief=lambda line: f"{line['contract']}", words=_capacity,
    ),
    "sla_credit": LineType(
        account="sla", counts=False, owed=None, category="Credit", said="What {contract} was short of",
        brief=lambda line: f"{line['contract']}", words=_sla_credit,
    ),
    "commitment": LineType(
        account="commitment", counts=False, owed="commitment", category="Purchase",
        said="What is left of the minimum commitment of {committed} USD",
        brief=lambda line: f"left of {line['committed']}",
        words=lambda line, *_: (f"Commitment of {line['committed']} USD, what is left of it", "", ""),
    ),
    "correction": LineType(
        account="correction", counts=False, owed="credit note", category="Adjustment",
        said="Given back of {invoice}",
        brief=lambda line: f"{line['invoice']}",
        words=lambda line, *_: (f"Correction of {line['invoice']}", "", ""),
    ),
}  # fmt: skip
