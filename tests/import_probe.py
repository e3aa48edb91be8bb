"""Run as `python -m tests.import_probe MODULE…`: imports them in a fresh process and prints, as JSON, what
that did.

`loaded`: every module that is there afterwards. `deeds`: what importing must not do: read the environment,
open a socket or a pipe to another process, start a thread.
"""

import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = str(Path(__file__).parents[1])
ENVIRONMENT_CODE = ("<frozen os>", "<frozen _collections_abc>", os.__file__)
FORBIDDEN_EVENTS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.fork",
    "os.posix_spawn",
)


def frames(start: FrameType | None) -> Iterator[FrameType]:
    """The stack, innermost first."""
    while start is not None:
        yield start
        start = start.f_back


def our_line(start: FrameType | None) -> str | None:
    """The innermost line of the product on the stack, if what happens there is done by a module that is
    being imported.
    """
    for frame in frames(start):
        path = frame.f_code.co_filename
        if path.startswith(ROOT) and "/.venv" not in path and not path.startswith(f"{ROOT}/tests/"):
            return f"{path.removeprefix(ROOT + '/')}:{frame.f_lineno}"
    return None


def reader(start: FrameType | None) -> str | None:
    """Who reads the environment: a line of ours directly, or settings that are made while a module is
    imported.
    """
    outside = [frame for frame in frames(start) if frame.f_code.co_filename not in ENVIRONMENT_CODE]
    path = outside[0].f_code.co_filename if outside else ""
    if (path.startswith(ROOT) and "/.venv" not in path) or "/pydantic_settings/" in path:
        return our_line(start)
    return None


def probe(modules: list[str]) -> dict[str, Any]:
    """Import them and tell."""
    deeds: list[str] = []
    importing = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if importing and event in FORBIDDEN_EVENTS and (line := our_line(sys._getframe(1))):
            deeds.append(f"{line}: {event}")

    class Watched(type(os.environ)):  # type: ignore[misc]
        def __getitem__(self, key: str) -> str:
            if importing and (line := reader(sys._getframe(1))):
                deeds.append(f"{line}: reads {key} from the environment")
            value: str = super().__getitem__(key)
            return value

        def __iter__(self) -> Iterator[str]:
            if importing and (line := reader(sys._getframe(1))):
                deeds.append(f"{line}: reads the whole environment")
            return super().__iter__()

    sys.addaudithook(audit)
    os.environ.__class__ = Watched
    before = set(threading.enumerate())
    for module in modules:
        importlib.import_module(module)
    importing = False
    deeds += [f"thread {thread.name} was started" for thread in set(threading.enumerate()) - before]
    return {"loaded": sorted(sys.modules), "deeds": sorted(set(deeds))}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1:])))
