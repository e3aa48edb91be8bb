"""What a launcher is asked for, and what it can do. Knows neither processes nor Ray."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

_POOLING: Final = "/pooling"
_SPEC_HEX: Final = 8


class NoRoom(Exception):
    """Nothing can be started now: GPUs, machines or other resources are missing. The text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is to run now of a pool (`GET launches` of the admin API): `instances` of a model, each on `nodes`
    machines, with so many GPUs and other resources a machine.
    """

    pool: str
    model: str
    instances: int
    gpus: int = 0
    nodes: int = 1
    resources: Mapping[str, int] = field(default_factory=dict)
    path: str | None = None
    engine_args: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Launch":
        """Of an answer of the admin API. Raises KeyError, TypeError."""
        return cls(
            pool=fields["pool"],
            model=fields["model"],
            instances=fields["wanted"],
            gpus=fields["gpus"],
            nodes=fields["nodes"],
            resources=dict(fields["resources"]),
            path=fields["path"],
            engine_args=tuple(fields["engine_args"]),
        )

    def spec(self) -> str:
        """The same for the same way of starting, whatever the number of instances."""
        parts = [
            self.model,
            self.gpus,
            self.nodes,
            sorted(self.resources.items()),
            self.path,
            self.engine_args,
        ]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:_SPEC_HEX]

    def new_instance(self) -> str:
        """An id that nobody had before. It says how it was started, so that a launcher that comes later
        knows.
        """
        return f"{self.pool}-{self.spec()}-{secrets.token_hex(3)}"

    def worker_words(self, instance: str) -> list[str]:
        """What follows `taas worker`."""
        words = [self.model, "--instance", instance]
        if self.path is not None:
            words += ["--path", self.path]
        if self.pool.endswith(_POOLING):
            words.append("--pooling")
        return [*words, *(f"--engine-arg={word}" for word in self.engine_args)]


def origin(instance: str) -> tuple[str, str]:
    """Pool and spec of an instance's id."""
    pool, spec, _ = instance.rsplit("-", 2)
    return pool, spec


class Launcher(Protocol):
    """Starts and stops workers. Calls may take seconds, and do not wait until an engine serves."""

    async def start(self, instance: str, launch: Launch) -> None:
        """Raises NoRoom."""

    async def running(self) -> frozenset[str]:
        """The instances whose worker runs or is being started, also by a launcher before this one."""

    async def drain(self, instance: str) -> None:
        """Its requests may end, then it stops; returns at once."""

    async def end(self, instance: str) -> None:
        """At once, as far as it can be reached. What is started next avoids its machine for a while."""

    async def close(self) -> None:
        """This process ends."""
