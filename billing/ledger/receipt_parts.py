"""The content of a receipt, and how the parts of one request become one receipt. Pure: it looks nothing
up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from billing.catalogue.money import Money, price_string
from billing.catalogue.price_book import Price
from billing.ledger.entries import Pricing

# In the order in which they follow each other.
_STATES: Final = ("open", "settled", "recorded")


@dataclass(frozen=True, slots=True)
class Receipt:
    """`state`: `open`, `settled` (ended, not yet in the ledger) or `recorded`. `facts`: the usage event's
    fields, as far as they are known.

    `amount` is None if there is none yet, or never will be: `pricing` says which.
    """

    state: str
    facts: Mapping[str, Any]
    pricing: Pricing | None = None
    price: Price | None = None
    amount: Money | None = None

    @property
    def tenant(self) -> str | None:
        """The tenant of the request."""
        tenant: str | None = self.facts["tenant"]
        return tenant

    def to_json(self) -> dict[str, Any]:
        """The event's fields, and the money beside them; amounts are decimal strings in USD."""
        price = self.price
        return {
            **self.facts,
            "state": self.state,
            "pricing": self.pricing.value if self.pricing else None,
            "price": None if price is None else {
                "price_id": price.price_id,
                "input": price_string(price.input_picousd),
                "cached_input": price_string(price.cached_input_picousd),
                "output": price_string(price.output_picousd),
            },
            "amount": None if self.amount is None else str(self.amount),
            "currency": "USD",
        }  # fmt: skip


def merge_parts(parts: Sequence[Receipt]) -> Receipt:
    """One receipt for a request that was preempted and resumed: the sums of all parts, the ending of the last
    part, and everything else from the first.
    """
    first, last = parts[0], parts[-1]
    facts = dict(first.facts)
    for name in ("ending", "ended_ms", "http_status"):
        if name in last.facts:
            facts[name] = last.facts[name]
    for name in ("produced", "delivered", "billed"):
        if name in facts:
            facts[name] = {
                kind: sum(part.facts.get(name, {}).get(kind, 0) for part in parts)
                for kind in first.facts[name]
            }
    for name in ("units_mu", "waited_ms"):
        if name in facts:
            facts[name] = sum(part.facts.get(name, 0) for part in parts)
    if "absorbed" in facts:
        facts["absorbed"] = _absorbed([part.facts["absorbed"] for part in parts if "absorbed" in part.facts])
    facts["parts"] = [part.facts["request_id"] for part in parts]
    amounts = [part.amount for part in parts]
    known = [amount for amount in amounts if amount is not None]
    return replace(
        first,
        state=min((part.state for part in parts), key=_STATES.index),
        facts=facts,
        amount=sum(known[1:], known[0]) if len(known) == len(amounts) else None,
    )


def _absorbed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    reasons: dict[str, dict[str, int]] = {}
    for part in parts:
        for reason, tokens in part["reasons"].items():
            so_far = reasons.setdefault(reason, {"prompt": 0, "output": 0})
            for kind in so_far:
                so_far[kind] += tokens[kind]
    return {
        "prompt": sum(part["prompt"] for part in parts),
        "output": sum(part["output"] for part in parts),
        "reasons": reasons,
    }
