"""One run of an engine: start it under its guard, wait until it really answers, stop it, leave nothing
behind. It knows no registry.

"Really": /health returns 200 and the served model has produced a token. The tokens of that probe are in the
baseline, which is read after it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from billing.wire.cancellation import end_tasks
from billing.wire.tokens import CounterPair
from serving import engine_log
from serving.engine_client import EngineClient, EngineUnanswering
from serving.served_model import ServedModel
from serving.vllm_command import EngineCommand

GUARD: Final = Path(__file__).with_name("engine_guard.py")
_POLL_S: Final = 0.25
_PROGRESS_S: Final = 5.0
# After a probe's answer its tokens are in the counters within one step of the engine.
_COUNTED_WITHIN_S: Final = 10.0
# The guard kills the group at once; the kernel may take a while to free a GPU's memory.
_KILLED_WITHIN_S: Final = 30.0

Progress = Callable[[str], None]


class EngineStartFailed(Exception):
    """The engine did not start. The text is for people: what happened, the relevant lines of its log, where
    the rest is.
    """


class EngineProcess:
    """A started engine. Its starter must `stop` it; `exited` resolves to its exit status when it ends by
    itself.
    """

    def __init__(self, guard: asyncio.subprocess.Process, log_path: Path, log_offset: int) -> None:
        self._guard = guard
        self._log_path = log_path
        self._log_offset = log_offset
        self.group: int | None = None
        self.exited: asyncio.Task[int] = asyncio.create_task(guard.wait())

    @classmethod
    async def start(cls, command: EngineCommand, log_path: Path) -> "EngineProcess":
        """Start it; does not wait until it answers. EngineStartFailed when the program cannot be run at
        all.
        """
        try:
            engine_log.rotate(log_path)
            with log_path.open("ab") as log:
                offset = log.tell()
                guard = await asyncio.create_subprocess_exec(
                    guard_python(command), "-I", "-S", str(GUARD), "--", *command.argv,
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                    env=dict(command.env), start_new_session=True, cwd=command.folder,
                    user=command.user, group=command.user,
                    extra_groups=None if command.user is None else (),
                )  # fmt: skip
        except OSError as exc:
            # No room for a process, or for its log: it may be there with the next try.
            raise EngineStartFailed(f"The engine cannot be started (its log is {log_path}): {exc}") from exc
        engine = cls(guard, log_path, offset)
        assert guard.stdout is not None
        pid_line = await guard.stdout.readline()
        if not pid_line:
            raise EngineStartFailed(engine._failure(f"it ended at once, status {await engine.exited}"))
        engine.group = int(pid_line)
        return engine

    async def wait_until_answering(
        self, client: EngineClient, model: ServedModel, timeout_s: float, progress: Progress
    ) -> CounterPair:
        """Returns the baseline: the counters with the probe's tokens in them. EngineStartFailed if it ends or
        takes too long.
        """
        started = time.monotonic()
        answering = asyncio.create_task(self._answer(client, model, started, progress))
        try:
            await asyncio.wait(
                {answering, self.exited}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                return answering.result()
            if self.exited.done():
                raise EngineStartFailed(
                    self._failure(
                        f"it ended with status {self.exited.result()}{_explained(self.exited.result())}"
                    )
                )
            raise EngineStartFailed(self._failure(f"it did not answer within {timeout_s:.0f} s"))
        except EngineUnanswering as exc:
            raise EngineStartFailed(self._failure(f"it is healthy but does not work: {exc}")) from exc
        finally:
            await end_tasks(answering)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, `grace_s` to finish, then kill the whole group. Returns when nothing of it runs. May be
        called again.
        """
        if not self.exited.done() and grace_s > 0:
            with contextlib.suppress(ProcessLookupError):
                self._guard.terminate()
            await asyncio.wait({self.exited}, timeout=grace_s)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        await asyncio.wait({self.exited}, timeout=_KILLED_WITHIN_S)
        if not self.exited.done():
            self._guard.kill()
            await self.exited
        if self.exited.result() < 0 and self.group is not None:
            # The guard itself was killed; the engine's first process went with it, its children may not have.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)

    def died_because(self) -> str:
        """For a log line after it has ended by itself: the newest explaining line of its log."""
        lines = engine_log.telling_lines(engine_log.read_since(self._log_path, self._log_offset))
        return lines[-1] if lines else "its log is empty"

    async def _answer(
        self, client: EngineClient, model: ServedModel, started: float, progress: Progress
    ) -> CounterPair:
        told = started
        while not await _is_up(client):
            if time.monotonic() - told >= _PROGRESS_S:
                told = time.monotonic()
                last = engine_log.last_message(engine_log.read_since(self._log_path, self._log_offset))
                progress(f"engine starting, {told - started:.0f} s: {last}")
            await asyncio.sleep(_POLL_S)
        cost = await client.probe(model)
        deadline = time.monotonic() + _COUNTED_WITHIN_S
        while True:
            counters = (await client.reading()).counters
            if counters.prompt >= cost.prompt and counters.generation >= cost.generation:
                return counters
            if time.monotonic() > deadline:
                raise EngineUnanswering(
                    "its counters do not move with what it produces, so nothing could be audited"
                )
            await asyncio.sleep(_POLL_S)

    def _failure(self, what: str) -> str:
        lines = engine_log.telling_lines(engine_log.read_since(self._log_path, self._log_offset))
        told = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        return (
            f"The engine did not start: {what}. What its log says:\n{told}\n  The whole log: {self._log_path}"
        )


def guard_python(command: EngineCommand) -> str:
    """What runs the guard: a private model's user need not be able to read our own Python."""
    return sys.executable if command.user is None else command.argv[0]


async def _is_up(client: EngineClient) -> bool:
    try:
        return await client.is_healthy()
    except EngineUnanswering:
        return False


def _explained(status: int) -> str:
    return " (killed: often a lack of memory)" if status == 128 + signal.SIGKILL else ""
