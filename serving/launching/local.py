"""Workers as processes of this machine. They end with their launcher."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from serving.launching.gpus import Claim, claim_gpus
from serving.launching.held_worker import HeldWorker
from serving.launching.launcher import Launch, NoRoom

_LAST_BYTES: Final = 2_000


class LocalLauncher:
    """`environment`: what workers are started with. `here`: the GPUs of this machine."""

    def __init__(
        self, environment: Mapping[str, str], logs: Path, here: tuple[str, ...], note: Callable[[str], None]
    ) -> None:
        self._environment = environment
        self._logs = logs
        self._here = here
        self._note = note
        self._held: dict[str, tuple[HeldWorker, Claim]] = {}

    async def start(self, instance: str, launch: Launch) -> None:
        if launch.nodes > 1:
            raise NoRoom("this launcher has one machine, and the model is to run over several")
        if launch.resources:
            raise NoRoom(f"this machine has none of: {', '.join(launch.resources)}")
        claim = claim_gpus(launch.gpus, self._here)
        if claim is None:
            raise NoRoom(f"{launch.gpus} GPUs are needed, and fewer of {len(self._here)} are free")
        environment = {**self._environment, **_visible(claim.gpus)}
        log = self._logs / f"worker-{instance.replace('/', '-')}.log"
        worker = await asyncio.to_thread(HeldWorker, launch.worker_words(instance), environment, log)
        self._held[instance] = worker, claim

    async def running(self) -> frozenset[str]:
        for instance, (worker, claim) in [*self._held.items()]:
            if (status := worker.status()) is not None:
                del self._held[instance]
                claim.release()
                if status:
                    log = self._logs / f"worker-{instance.replace('/', '-')}.log"
                    self._note(
                        f"the worker of {instance} ended with status {status}; its output is in {log}; it "
                        f"ends: {_last_line(log)}"
                    )
        return frozenset(self._held)

    async def drain(self, instance: str) -> None:
        if instance in self._held:
            self._held[instance][0].drain()

    async def end(self, instance: str) -> None:
        if instance in self._held:
            await asyncio.to_thread(self._held[instance][0].end)

    async def close(self) -> None:
        """Drains all of them and waits for their end."""
        for instance in self._held:
            await self.drain(instance)
        for worker, _ in self._held.values():
            await asyncio.to_thread(worker.wait)


def _last_line(log: Path) -> str:
    """Why it ended, as a rule."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            said = file.read().decode("utf-8", "replace").split("\n")
    except OSError as exc:
        return str(exc.strerror)
    return next((line for line in reversed(said) if line.strip()), "nothing")


def _visible(gpus: tuple[str, ...]) -> dict[str, str]:
    """An instance sees its own GPUs alone, and one without GPUs sees none."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
