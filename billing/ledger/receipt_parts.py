"""The content of a receipt, and how the parts of one request become one receipt. Pure: it looks nothing
up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from billing.catalogue.money import Money, price_string
from billing.catalogue.price_book import Price
from billing.ledger.entries import Pricing
from billing.wire.usage_event import ADDED_UP

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
                "cache_write": price_string(price.written_picousd),
                "output": price_string(price.output_picousd),
            },
            "amount": None if self.amount is None else str(self.amount),
            "currency": "USD",
        }  # fmt: skip


def merge_parts(parts: Sequence[Receipt]) -> Receipt:
    """One receipt for a request that was interrupted and resumed: the sums of all parts, the ending of the
    last part, and everything else from the first.
    """
    first, last = parts[0], parts[-1]
    facts = dict(first.facts)
    for name in ("ending", "ended_ms", "http_status"):
        if name in last.facts:
            facts[name] = last.facts[name]
    for name in ADDED_UP & facts.keys():
        facts[name] = _sum([part.facts[name] for part in parts if name in part.facts])
    facts["parts"] = [part.facts["request_id"] for part in parts]
    amounts = [part.amount for part in parts]
    known = [amount for amount in amounts if amount is not None]
    return replace(
        first,
        state=min((part.state for part in parts), key=_STATES.index),
        facts=facts,
        amount=sum(known[1:], known[0]) if len(known) == len(amounts) else None,
    )


def _sum(counts: Sequence[Any]) -> Any:
    """The sum of counts, or of objects of counts, member by member."""
    if not isinstance(counts[0], Mapping):
        return sum(counts)
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: _sum([each[name] for each in counts if name in each]) for name in names}
