"""Translates a provider's error into what a caller may know. Written for OpenAI's and Anthropic's APIs.

A refusal of the request itself is passed on: its parameter, and its sentence if that names neither the
provider, an account, an address nor the provider's own name for the model. What is between the provider and
us (key, account, unknown model, rate limits) is never the caller's error.
"""

import re
from typing import Any, Final

from gateway.errors import ContextLengthExceeded, EngineFailed, EngineRefused, GatewayError, Overloaded
from gateway.request import RouteSpec
from gateway.upstream.error_text import LEAK, message_and_param, read_error

RETRY_AFTER_MS: Final = 1000
_SENTENCE_CHARS_MAX: Final = 300
_OF_THE_REQUEST: Final = frozenset({400, 413, 415, 422})
_PARAM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(?:\[\d{1,6}\]|\.[A-Za-z0-9_]{1,64}){0,12}")
# Both providers' sentences about a prompt that is too long.
_TOO_LONG: Final = (
    re.compile(
        r"maximum context length is (?P<most>\d+) tokens.*?(?P<asked>\d+) (?:input )?tokens", re.DOTALL
    ),
    re.compile(r"prompt is too long: (?P<asked>\d+) tokens > (?P<most>\d+)"),
)
# Refusals with which a provider means the operator's account.
_OF_THE_ACCOUNT: Final = re.compile(
    r"credit|billing|quota|organi[sz]ation|account|api[ _-]?key|workspace|project|plan\b|verif", re.IGNORECASE
)
_NAMES: Final = re.compile(
    r"openai|anthropic|claude|gpt|https?:|\b(?:org|proj|sk|req)[-_]\w|@\w", re.IGNORECASE
)
# The errors of streams, by the type that they name.
_BUSY_TYPES: Final = frozenset({"overloaded_error", "rate_limit_error", "rate_limit_exceeded"})
_REQUEST_TYPES: Final = frozenset({"invalid_request_error"})


def refusal(status: int, body: bytes, route: RouteSpec, engine_model: str) -> GatewayError:
    """The error that a caller on `route` gets for an answer with this status. Never raises."""
    if status == 429:
        return Overloaded(RETRY_AFTER_MS)
    if status not in _OF_THE_REQUEST:
        return EngineFailed()
    return _of_request(read_error(body), route, engine_model)


def failure(event: bytes, route: RouteSpec, engine_model: str) -> GatewayError:
    """The same for an error with which a stream ended before it had produced anything."""
    error = read_error(event)
    code = error.get("code")
    kinds = {kind for kind in (error.get("type"), code) if type(kind) is str}
    if kinds & _BUSY_TYPES:
        return Overloaded(RETRY_AFTER_MS)
    if kinds & _REQUEST_TYPES or (type(code) is int and code in _OF_THE_REQUEST):
        return _of_request(error, route, engine_model)
    return EngineFailed()


def _of_request(error: dict[str, Any], route: RouteSpec, engine_model: str) -> GatewayError:
    message, param = message_and_param(error)
    for sentence in _TOO_LONG:
        if found := sentence.search(message):
            most, asked = int(found["most"][:12]), int(found["asked"][:12])
            return ContextLengthExceeded(most, asked, route.prompt_param, "tokens")
    if _OF_THE_ACCOUNT.search(message):
        return EngineFailed()
    param = param if param is not None and _PARAM.fullmatch(param) else None
    if _is_safe(message, engine_model):
        return EngineRefused(message, param)
    return EngineRefused("The request was refused." if param is None else f"Invalid '{param}'.", param)


def _is_safe(message: str, engine_model: str) -> bool:
    if not message or len(message) > _SENTENCE_CHARS_MAX or not message.isprintable():
        return False
    return not (LEAK.search(message) or _NAMES.search(message) or engine_model in message)
