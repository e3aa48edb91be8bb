"""What is measured: the gateway with everything that it needs, and the naive proxy."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.bench.shapes import MODELS
from loadtest.children import Child, DidNotStart, answers, cores, free_port, python
from loadtest.own_stack import OwnStack, Served


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
    @abstractmethod
    def key(self) -> str:
        """What it wants to see as API key."""

    @abstractmethod
    def check(self, requests: int, output_tokens: int) -> str | None:
        """What is wrong with what it recorded of so many requests, if it records anything."""


class Naive(Subject):
    """FastAPI and aiohttp."""

    name = "naive"
    key = "sk-none"
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

    def check(self, requests: int, output_tokens: int) -> str | None:
        return None


class Gateway(Subject):
    """Our gateway with quotas and metering on; each model is an instance of its own, which is what the
    ports of the backend are for.
    """

    name = "gateway"

    def __init__(self, folder: Path, backend_ports: list[int], under: Sequence[str] = ()) -> None:
        super().__init__(folder, backend_ports)
        served = [
            Served(model, url, 4096, routes=("chat",))
            for model, url in zip(MODELS, self.backends, strict=True)
        ]
        self._stack = OwnStack(folder, served, under=under)

    def start(self) -> None:
        self._stack.start()

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

    @property
    def key(self) -> str:
        return self._stack.key

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
