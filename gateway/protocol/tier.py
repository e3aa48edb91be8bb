"""Service tiers on the wire: the names that a caller may ask for, and the name that an answer gives to the
class that served it.

It knows no engine's bytes and no quota. Another module decides which class a request gets, and
`gateway.stream.answer_form` writes the names into answers.
"""

from typing import Any

from billing.wire.usage_event import CapacityClass
from gateway.protocol.fields import one_of
from gateway.request import ServiceTier

# OpenAI's names. Its `scale` is another product, so it is refused like any unknown name.
check_tier = one_of(*ServiceTier)
# Anthropic's own two names, and OpenAI's, so that callers of this dialect can ask for every tier.
check_anthropic_tier = one_of("auto", "standard_only", "default", "flex", "priority")

_REQUESTED = {tier.value: tier for tier in ServiceTier} | {"standard_only": ServiceTier.DEFAULT}
_USED = {
    CapacityClass.RESERVED: b"priority",
    CapacityClass.ON_DEMAND: b"default",
    CapacityClass.FLEX: b"flex",
}
# Anthropic has no flex: only callers that asked for it by OpenAI's name see this one.
_ANTHROPIC_USED = {b"priority": "priority", b"default": "standard", b"flex": "flex"}


def requested_tier(body: dict[str, Any]) -> ServiceTier:
    """The tier that a checked body asks for. Missing and null mean `auto`."""
    named: str | None = body.get("service_tier")
    return ServiceTier.AUTO if named is None else _REQUESTED[named]


def used_tier(class_: CapacityClass) -> bytes:
    """OpenAI's name for the class that served a request: the value of a meter's `tier`."""
    return _USED[class_]


def anthropic_tier(tier: bytes) -> str:
    """The result of `used_tier`, in the names of Anthropic's usage object."""
    return _ANTHROPIC_USED[tier]
