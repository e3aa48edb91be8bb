"""Which GPUs of this machine an instance gets: no two get the same one, whoever starts them.

A GPU is claimed by the name of a socket. It is machine-wide, and the kernel releases it however its holder
ends.
"""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

_DEVICES: Final = Path("/dev")


def gpus_here(visible: str | None, devices: Path = _DEVICES) -> tuple[str, ...]:
    """Their names: those of CUDA_VISIBLE_DEVICES (`visible`) if that is set, else all, by number."""
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    numbers = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia*")]
    return tuple(sorted((number for number in numbers if number.isdecimal()), key=int))


class Claim:
    """So many GPUs, until it is released or this process ends."""

    def __init__(self, gpus: tuple[str, ...], held: ExitStack) -> None:
        self.gpus = gpus
        self._held = held

    def release(self) -> None:
        self._held.close()


def claim_gpus(count: int, here: Sequence[str]) -> Claim | None:
    """None if there are not so many free ones: then none is taken."""
    with ExitStack() as held:
        taken: list[str] = []
        for gpu in here:
            if len(taken) == count:
                break
            name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                name.bind(f"\0taas-gpu-{gpu}")
            except OSError:
                name.close()
                continue
            held.callback(name.close)
            taken.append(gpu)
        if len(taken) < count:
            return None
        return Claim(tuple(taken), held.pop_all())
