"""What is measured: the gateway with everything that it needs, and the naive proxy."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from loadtest.bench.many_tenants import ManyTenantsStack
from loadtest.bench.shapes import MODELS
from loadtest.children import Child, DidNotStart, answers, cores, free_port, python
from loadtest.own_stack import Served

# More than any cache of values of a tenant holds but the catalogue's own; more would only take longer to warm
# up, several minutes for 100,000.
IN_TURN_MAX: Final = 5_000


@contextlib.contextmanager
def running_backend(folder: Path) -> Iterator[list[int]]:
    """Run the backend; its ports, one for each model."""
    ports = [free_port() for _ in MODELS]
    backend = Child("backend", python("-m", "loadtest.bench.backend", *map(str, ports)), cores()[0], folder)
    try:
        backend.wait_until(answers(f"http://127.0.0.1:{ports[-1]}/health"))
        yield ports
    finally:
        backend.stop()


class Subject(ABC):
    """A proxy in front of the backend, alone on its core."""

    name: str

    def __init__(self, folder: Path, backend_ports: list[int]) -> None:
        self.folder = folder
        self.backends = [f"http://127.0.0.1:{port}" for port in backend_ports]

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all of it, however far the start went."""

    @property
    @abstractmethod
    def child(self) -> Child:
        """The process on its own core."""

    @property
    def valkey(self) -> Child | None:
        """The Valkey that it asks, if it asks one."""
        return None

    @property
    @abstractmethod
    def port(self) -> int:
        """Where it listens."""

    @property
    def callers(self) -> int:
        """How many send requests."""
        return 1

    @abstractmethod
    def take_keys(self, count: int) -> list[str]:
        """API keys for so many requests, which take them in turn."""

    @abstractmethod
    def check(self, requests: int, output_tokens: int) -> str | None:
        """What is wrong with what it recorded of so many requests, if it records anything."""


class Naive(Subject):
    """FastAPI and aiohttp."""

    name = "naive"
    port = 0
    _child: Child | None = None

    def start(self) -> None:
        self.port = free_port()
        self._child = Child(
            self.name,
            python("-m", "loadtest.bench.naive", str(self.port), self.backends[0]),
            cores()[1],
            self.folder,
        )
        self._child.wait_until(answers(f"http://127.0.0.1:{self.port}/openapi.json"))

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    @property
    def child(self) -> Child:
        assert self._child is not None
        return self._child

    def take_keys(self, count: int) -> list[str]:
        return ["sk-none"]

    def check(self, requests: int, output_tokens: int) -> str | None:
        return None


class Gateway(Subject):
    """Our gateway with quotas and metering on; each model is an instance of its own, which is what the
    ports of the backend are for.

    It has so many processes and tenants. At most IN_TURN_MAX of the tenants send requests.
    """

    name = "gateway"

    def __init__(
        self,
        folder: Path,
        backend_ports: list[int],
        *,
        processes: int = 1,
        tenants: int = 1,
        under: Sequence[str] = (),
    ) -> None:
        super().__init__(folder, backend_ports)
        served = [
            Served(model, url, 4096, routes=("chat",))
            for model, url in zip(MODELS, self.backends, strict=True)
        ]
        self._stack = ManyTenantsStack(folder, served, tenants=tenants, processes=processes, under=under)
        self._callers = min(tenants, IN_TURN_MAX)
        self._turns: Iterator[str] = iter(())

    def start(self) -> None:
        self._stack.start()
        self._turns = cycle(self._stack.tenant_keys[: self._callers])

    @property
    def callers(self) -> int:
        return self._callers

    def take_keys(self, count: int) -> list[str]:
        return list(islice(self._turns, count))

    def stop(self) -> None:
        self._stack.stop()

    @property
    def child(self) -> Child:
        return self._stack.gateway

    @property
    def valkey(self) -> Child | None:
        return self._stack.valkey

    @property
    def port(self) -> int:
        return self._stack.port

    def check(self, requests: int, output_tokens: int) -> str | None:
        """Billed must be what was received, once the stream of events is drained."""
        with contextlib.suppress(DidNotStart):
            self.child.wait_until(lambda: self._stack.billed()[0] >= requests)
        billed = self._stack.billed()
        if billed != (requests, output_tokens):
            return (
                f"billed {billed[0]} requests and {billed[1]} output tokens, received {requests} and "
                f"{output_tokens}"
            )
        return None


SUBJECTS: dict[str, type[Subject]] = {"gateway": Gateway, "naive": Naive}
