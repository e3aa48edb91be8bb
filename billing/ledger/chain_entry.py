"""What is hashed of an entry of the ledger, and how: its place in a chain, the digests of its parts. Pure.

Members that are null, 0, false or empty are left out, so that columns that are added later change no hash.
The event has two parts, because a tenant can check its own chain without being told names of our machines.
"""

import hashlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import orjson

from billing.catalogue.price_book import Price
from billing.wire.usage_event import COLUMNS, INSIDE
from billing.wire.value import Value

# Columns that a tenant sees of its events, and ours.
PUBLIC: Final = ("kind", *(each for name in COLUMNS if name not in INSIDE for each in COLUMNS[name]))
INTERNAL: Final = ("version", *INSIDE, "digest", "evidence")

NO_HASH: Final = "0" * 64
# Enough of a digest to tell which part differs; the hash is what proves it.
PART_BYTES: Final = 8
PART_NAMES: Final = ("event", "internal", "postings", "price")
# Beyond it a float is not exact, and what SQL gives back need not be the same type.
_EXACT_MAX: Final = 2**53
# Who writes these columns may write any number; all others hold integers and texts.
_ANY_NUMBER: Final = ("decision", "provider", "evidence")


class Parts(Value, frozen=True, kw_only=True):
    """Digests (hex) of the parts of an entry; '' of what it does not have."""

    event: str
    internal: str
    postings: str
    price: str

    def prefixes(self) -> str:
        """As they are stored, in hex."""
        width = 2 * PART_BYTES
        return "".join(
            (digest or NO_HASH)[:width] for digest in (self.event, self.internal, self.postings, self.price)
        )


def canonical(document: Mapping[str, Any]) -> bytes:
    """JSON with sorted names and without spaces, in UTF-8."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form, in hex."""
    return hashlib.sha256(canonical(document)).hexdigest()


def public_part(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of the columns of an event: what its tenant sees."""
    return _part(row, PUBLIC)


def parts_of(
    row: Mapping[str, Any] | None, postings: Iterable[tuple[str, str, int]], price_digest: str
) -> Parts:
    """Of an event's columns, or None where the entry is not of a request; its postings (account, holder,
    amount in pico-dollars) in their order; and the digest of its price.
    """
    lines = [[account, holder, str(amount)] for account, holder, amount in postings]
    return Parts(
        event="" if row is None else digest(public_part(row)),
        internal="" if row is None else digest(_part(row, INTERNAL)),
        postings=digest({"lines": lines}) if lines else "",
        price=price_digest,
    )


def price_document(price: Price) -> dict[str, Any]:
    """What a price says, in pico-dollars a token; without what it does not say."""
    fields = {
        "price_id": price.price_id,
        "model": price.model,
        "valid_from_ms": price.valid_from_ms,
        "input_picousd": price.input_picousd,
        "cached_input_picousd": price.cached_input_picousd,
        "cache_write_picousd": price.cache_write_picousd,
        "output_picousd": price.output_picousd,
        "contract_id": price.scope.contract_id,
        "class": price.scope.class_,
    }
    return {name: value for name, value in fields.items() if value is not None}


def entry(facts: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """What is hashed. `facts`: chain, position, chained_ms; entry (its number), recorded_ms, request_id (or
    kind and subject), pricing, corrects, amount_picousd.
    """
    digests = {
        "event": parts.event,
        "internal": parts.internal,
        "postings": parts.postings,
        "price": parts.price,
    }
    return {name: value for name, value in (*facts.items(), *digests.items()) if value}


def link(previous: str, entry: Mapping[str, Any]) -> str:
    """The hash (hex) of an entry that follows the one with the hash `previous`."""
    return hashlib.sha256(previous.encode() + b"\n" + canonical(entry)).hexdigest()


def _part(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    part = {name: value for name in names if (value := row.get(name))}
    for name in _ANY_NUMBER:
        if name in part:
            part[name] = _exact(part[name])
    return part


def _exact(value: Any) -> Any:
    """The same however it was stored: an integer within 2^53, else the digits as a text."""
    if isinstance(value, Mapping):
        return {name: _exact(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(each) for each in value]
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if abs(value) < _EXACT_MAX and value == int(value):
        return int(value)
    return str(Decimal(repr(value)).normalize())
