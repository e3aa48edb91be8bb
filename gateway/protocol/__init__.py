"""From a caller's bytes to a checked request, and from that to an engine's body. Pure: no I/O, no tenants, no quotas."""

from gateway.protocol.engine_body import engine_body, engine_headers
from gateway.protocol.limits import ModelLimits, check_against_model
from gateway.protocol.parse import parse_request

__all__ = ["ModelLimits", "check_against_model", "engine_body", "engine_headers", "parse_request"]
