"""The words of classes on the wire: what a caller may ask for, and what an answer calls the class used.

Knows no engine's bytes and no quota: which class a request gets is decided elsewhere,
`gateway.stream.answer_form` writes the words into answers.
"""

from typing import Any

from billing.wire.usage_event import CapacityClass
from gateway.protocol.fields import one_of
from gateway.request import ServiceTier

# OpenAI's names; its `scale` is another product, and refused like any name that means nothing here.
check_tier = one_of(*ServiceTier)
# Anthropic's own two, and OpenAI's beside them, so that a caller of this dialect can ask for everything too.
check_anthropic_tier = one_of("auto", "standard_only", "default", "flex", "priority")

_ASKED = {tier.value: tier for tier in ServiceTier} | {"standard_only": ServiceTier.DEFAULT}
_USED = {
    CapacityClass.RESERVED: b"priority",
    CapacityClass.ON_DEMAND: b"default",
    CapacityClass.FLEX: b"flex",
}
# Anthropic has no flex: who sees that word has asked for it.
_ANTHROPIC_USED = {b"priority": "priority", b"default": "standard", b"flex": "flex"}


def asked_tier(body: dict[str, Any]) -> ServiceTier:
    """What a checked body asks for; nothing and null are `auto`."""
    named: str | None = body.get("service_tier")
    return ServiceTier.AUTO if named is None else _ASKED[named]


def used_tier(class_: CapacityClass) -> bytes:
    """What an answer calls the class it was served in, in OpenAI's words: the value of a meter's `tier`."""
    return _USED[class_]


def anthropic_tier(tier: bytes) -> str:
    """What `used_tier` said, as Anthropic's usage object calls it."""
    return _ANTHROPIC_USED[tier]
