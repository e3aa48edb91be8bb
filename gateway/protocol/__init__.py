"""From a caller's bytes to a checked request. Pure: no I/O, no tenants, no quotas."""

from gateway.protocol.limits import check_against_model
from gateway.protocol.parse import parse_request
from gateway.protocol.tier import used_tier

__all__ = [
    "check_against_model",
    "parse_request",
    "used_tier",
]
