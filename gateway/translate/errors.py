"""An error of a provider in the caller's dialect: the body of a refusal, or an error in mid-stream.

The sentence is the provider's own. Whoever answers the caller decides what it may see of it.
"""

from typing import Final

from msgspec import MsgspecError
from msgspec.json import decode, encode

from gateway.request import Dialect

# Anthropic's type, OpenAI's type, and what else names it in OpenAI's dialect: its codes, and as vLLM's code
# the status.
_KINDS: Final[tuple[tuple[str, str, tuple[str | int, ...]], ...]] = (
    ("invalid_request_error", "invalid_request_error", (400, 422)),
    ("authentication_error", "invalid_request_error", (401, "invalid_api_key")),
    ("permission_error", "permission_error", (403,)),
    ("not_found_error", "invalid_request_error", (404, "model_not_found")),
    ("request_too_large", "invalid_request_error", (413,)),
    ("rate_limit_error", "rate_limit_error", (429, "insufficient_quota", "rate_limit_exceeded")),
    ("overloaded_error", "server_error", (503,)),
    ("timeout_error", "server_error", (504,)),
)
_OPENAI: Final[dict[str | None, str]] = {anthropic: openai for anthropic, openai, _ in _KINDS}
_ANTHROPIC: Final[dict[str | int | None, str]] = {
    name: anthropic for anthropic, _, names in _KINDS for name in (anthropic, *names)
}


def error_in(dialect: Dialect, body: bytes) -> bytes:
    """The JSON of an error in `dialect`. Never raises: what is no error of the other becomes a general
    one.
    """
    try:
        error = decode(body)["error"]
        message, kind, code = error["message"], error.get("type"), error.get("code")
    except (MsgspecError, RecursionError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        message = kind = code = None
    message = message if isinstance(message, str) else "The provider of this model failed."
    kind = kind if isinstance(kind, str) else None
    if dialect is Dialect.OPENAI:
        told = {"message": message, "type": _OPENAI.get(kind, "server_error"), "param": None, "code": kind}
        return encode({"error": told})
    by_code = _ANTHROPIC.get(code) if isinstance(code, str | int) else None
    told = {"type": by_code or _ANTHROPIC.get(kind, "api_error"), "message": message}
    return encode({"type": "error", "error": told})
