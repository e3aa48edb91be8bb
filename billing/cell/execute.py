"""Runs a cell's script through redis-py, for the control plane, where a call's CPU time does not matter. The
gateway has its own client.
"""

from typing import Any, Final

import redis

from billing.cell.scripts import Command, library

# What a server says to a call of a function that it does not have.
FUNCTION_NOT_FOUND: Final = "Function not found"


def execute(client: redis.Redis, command: Command) -> list[Any]:
    """Run it; a server that does not have the scripts is given them."""
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
    """Give the server the scripts, unless it has them."""
    try:
        client.function_load(library().text)
    except redis.exceptions.ResponseError as exc:
        if "already exists" not in str(exc):
            raise
