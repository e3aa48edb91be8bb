"""From a caller's bytes to a checked request, and from that to an engine's body. Pure: no I/O, no tenants, no quotas."""

from gateway.protocol.engine_body import engine_body, engine_headers, with_priority
from gateway.protocol.limits import ModelLimits, check_against_model
from gateway.protocol.parse import parse_request
from gateway.protocol.tier import engine_priority, used_tier

__all__ = [
    "ModelLimits",
    "check_against_model",
    "engine_body",
    "engine_headers",
    "engine_priority",
    "parse_request",
    "used_tier",
    "with_priority",
]
