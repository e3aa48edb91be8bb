"""`python -m serving.launching.further_node MODEL WORDS`: a further node of an engine that runs over several.
It takes the words of `taas worker` and becomes vLLM without a server, which does what the head's engine says.
It registers nothing: head and further nodes are one instance.

Written by vLLM's source (`vllm serve --headless --nnodes`); it has not been tried.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from serving.launch import CannotStart, connect, find_model, find_python, find_redis, plan_worker, read_entry
from serving.settings import WorkerSettings
from serving.vllm_command import EngineCommand

_SERVER: Final = ("-m", "vllm.entrypoints.openai.api_server", "--model")


def headless(argv: Sequence[str]) -> list[str]:
    """The command of a server, as that of a node without one."""
    python, *words = argv
    assert tuple(words[:3]) == _SERVER
    return [python, "-m", "vllm.entrypoints.cli.main", "serve", *words[3:], "--headless"]


def main(arguments: Sequence[str]) -> None:
    """Becomes vLLM. Exits with a message if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m serving.launching.further_node")
    parser.add_argument("model")
    parser.add_argument("--instance", required=True)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--pooling", action="store_true")
    parser.add_argument("--engine-arg", action="append", default=[])
    try:
        command = asyncio.run(_command(parser.parse_args(arguments)))
    except CannotStart as exc:
        sys.exit(str(exc))
    argv = headless(command.argv)
    os.execve(argv[0], argv, dict(command.env))  # noqa: S606  (no shell is what is wanted)


async def _command(asked: argparse.Namespace) -> EngineCommand:
    settings = WorkerSettings()
    address = find_redis(settings.redis_url.get_secret_value())
    async with connect(address) as redis:
        model = await read_entry(redis, address, asked.model, pooling=asked.pooling)
    if model.owner is not None:
        raise CannotStart(
            "A private model over several nodes would not run under its own OS user everywhere."
        )
    python = find_python(settings)
    path = find_model(settings, asked.model, asked.path, python, print)
    port = settings.engine_port_first
    return plan_worker(settings, model, asked.instance, port, python, path, tuple(asked.engine_arg)).command


if __name__ == "__main__":
    main(sys.argv[1:])
