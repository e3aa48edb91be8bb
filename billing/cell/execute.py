"""Runs a cell's script through redis-py, for the control plane, where a call's CPU time does not matter. The
gateway has its own client.
"""

import logging
import re
from typing import Any, Final

import redis

from billing.cell.scripts import LIBRARY_PREFIX, Command, library

_log = logging.getLogger(__name__)

# The error of a server that does not have the called function.
FUNCTION_NOT_FOUND: Final = "Function not found"


def execute(client: redis.Redis, command: Command) -> list[Any]:
    """Run a script. A server that does not have the library gets it first."""
    untyped: Any = client
    try:
        reply: list[Any] = untyped.execute_command(*command)
    except redis.exceptions.ResponseError as exc:
        if str(exc) != FUNCTION_NOT_FOUND:
            raise
        load(client)
        reply = untyped.execute_command(*command)
    return reply


def load(client: redis.Redis) -> None:
    """Load the library into the server, unless it has it."""
    try:
        client.function_load(library().text)
    except redis.exceptions.ResponseError as exc:
        if "already exists" not in str(exc):
            raise


def forget_other_versions(client: redis.Redis) -> None:
    """Delete the libraries of other versions, which would stay for ever. A process that still uses one gives
    it to the server again with its next call.
    """
    try:
        loaded: Any = client.function_list(library=f"{LIBRARY_PREFIX}*")
    except redis.exceptions.NoPermissionError:
        _log.warning("old libraries of scripts stay in Redis: its user may not use FUNCTION LIST")
        return
    for name in _names(loaded):
        if re.fullmatch(LIBRARY_PREFIX + "[0-9a-f]{16}", name) and name != library().name:
            try:
                client.function_delete(name)
            except redis.exceptions.ResponseError as exc:
                if "not found" not in str(exc):
                    raise


def _names(loaded: Any) -> list[str]:
    found = []
    for each in loaded:
        words = each if isinstance(each, list) else [word for pair in each.items() for word in pair]
        texts = [word.decode() if isinstance(word, bytes) else word for word in words]
        found.append(texts[texts.index("library_name") + 1])
    return found
