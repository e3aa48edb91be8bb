"""Run a cell's script through redis-py: for the control plane, where a call's CPU time does not matter. The gateway has its own client."""

from typing import Any

import redis

from billing.cell.scripts import Command, text_of


def execute(client: redis.Redis, command: Command) -> list[Any]:
    """Run it; a server that has lost the script is given it again."""
    untyped: Any = client
    try:
        reply: list[Any] = untyped.execute_command(*command)
    except redis.exceptions.NoScriptError:
        client.script_load(text_of(str(command[1])))
        reply = untyped.execute_command(*command)
    return reply
