"""Reads what an engine's or a provider's error says, and tells what of it may reach a caller. Pure."""

import re
from typing import Any, Final

import orjson

MESSAGE_CHARS_MAX: Final = 4096
# A path, a URL, a host with a port, a flag, an address, or a position in a source file.
LEAK: Final = re.compile(
    r"[\\/]\w|://|\w:\d|--\w|0x[0-9a-f]|Traceback|File \"|<path>|\bhost\b|\bself\b|Error\(", re.IGNORECASE
)


def read_error(body: bytes) -> dict[str, Any]:
    """The error object of an answer or an event, in OpenAI's form or Anthropic's; empty for any other."""
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if type(parsed) is dict and type(parsed.get("response")) is dict:  # a response that failed
        parsed = parsed["response"]
    error = parsed.get("error") if type(parsed) is dict else None
    return error if type(error) is dict else {}


def message_and_param(error: dict[str, Any]) -> tuple[str, str | None]:
    """Its message, shortened, and the parameter that it names."""
    message, param = error.get("message"), error.get("param")
    return message[:MESSAGE_CHARS_MAX] if type(message) is str else "", param if type(param) is str else None
