"""A worker over the fake engine and a real Valkey."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.redis_address import parse_redis_url
from loadtest import plain_http
from serving import registry
from serving.engine_watch import WatchLimits
from serving.launch import connect
from serving.metrics import WorkerMetrics
from serving.served_model import ServedModel
from serving.vllm_command import NO_ADAPTERS, AdapterSlots, EngineCommand
from serving.worker import Worker, WorkerPlan, WorkerTimes
from tests.fixtures.valkey import free_port

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
MODEL = ServedModel(
    name="m",
    pool="pool-m",
    cell="cell-m",
    engine_model="m-engine",
    context_tokens=2048,
    routes=frozenset({"chat"}),
)
PATIENCE_S = 30.0


async def eventually(holds: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Wait until it holds (it may be a coroutine function) and return what it returned."""
    async with asyncio.timeout(patience_s):
        while True:
            result = holds()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    """Not gone, and not a zombie that nobody waits for."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass(kw_only=True)
class WorkerUnderTest:
    """A worker and what a test may ask or do to its engine."""

    subject: Worker
    plan: WorkerPlan
    redis: Redis
    metrics: WorkerMetrics
    pids_file: Path
    notes: list[str]
    running: asyncio.Task[bool] | None = None

    def start(self) -> None:
        self.running = asyncio.create_task(self.subject.run())

    async def entry(self) -> InstanceEntry | None:
        return await registry.find(self.redis, self.plan.instance)

    async def entry_with(self, status: InstanceStatus, **fields: Any) -> InstanceEntry:
        """The entry, once it has this status (and these values)."""

        async def there() -> InstanceEntry | None:
            assert self.running is not None
            if self.running.done():
                self.running.result()
            entry = await self.entry()
            good = (
                entry is not None
                and entry.status is status
                and all(getattr(entry, name) == value for name, value in fields.items())
            )
            return entry if good else None

        found: InstanceEntry = await eventually(there)
        return found

    async def tell(self, **what: Any) -> None:
        """An admin call to the fake engine; dying is an answer."""
        async with plain_http.AsyncClient() as http:
            with contextlib.suppress(httpx.HTTPError):
                await http.post(f"{self.plan.url}/fake", json=what)

    async def adapters(self) -> dict[str, str]:
        """Those that the fake engine has, by its names for them, with their folders."""
        async with plain_http.AsyncClient() as http:
            found: dict[str, str] = (await http.get(f"{self.plan.url}/fake")).json()
            return found

    def pids(self) -> list[int]:
        """Of every engine process started so far."""
        return [int(pid) for pid in self.pids_file.read_text().split()]

    def metric(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            f"taas_worker_{name}", {"engine": self.plan.instance, "model": "m"}
        )

    async def stopped(self) -> None:
        assert self.running is not None
        async with asyncio.timeout(PATIENCE_S):
            await self.running


@dataclass
class Workers:
    """Makes workers; those still running at the end of the test are stopped."""

    redis: Redis
    folder: Path
    made: list[WorkerUnderTest] = field(default_factory=list)

    def make(
        self,
        *engine_args: str,
        times: WorkerTimes | None = None,
        previous: InstanceEntry | None = None,
        model: ServedModel = MODEL,
        adapters: AdapterSlots = NO_ADAPTERS,
        cache_socket: Path | None = None,
    ) -> WorkerUnderTest:
        port = free_port()
        pids_file = self.folder / f"pids-{port}"
        env = {**os.environ, "VLLM_API_KEY": "engine-key", "FAKE_PIDS": str(pids_file)}
        plan = WorkerPlan(
            instance="m-test",
            model=model,
            url=f"http://127.0.0.1:{port}",
            key="engine-key",
            command=EngineCommand((sys.executable, str(FAKE_ENGINE), "--port", str(port), *engine_args), env),
            model_path=self.folder / "model",
            adapters=adapters,
            cache_socket=cache_socket,
            log_path=self.folder / "logs" / "engine-m-test.log",
            times=times or fast_times(),
        )
        metrics = WorkerMetrics(instance=plan.instance, model="m")
        notes: list[str] = []
        worker = WorkerUnderTest(
            subject=Worker(plan, self.redis, metrics, notes.append, previous),
            plan=plan,
            redis=self.redis,
            metrics=metrics,
            pids_file=pids_file,
            notes=notes,
        )
        self.made.append(worker)
        return worker


def fast_times(**changed: Any) -> WorkerTimes:
    """Real behaviour at a test's pace."""
    times = WorkerTimes(
        start_timeout_s=20,
        drain_s=20,
        engine_shutdown_timeout_s=1,
        notice_s=0.1,
        renew_s=0.05,
        watch=WatchLimits(poll_s=0.05, answer_timeout_s=1, unanswered_most=3),
    )
    return replace(times, **changed)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder through which others may pass, as where something is installed; pytest's are closed."""
    with tempfile.TemporaryDirectory(prefix="taas-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    async with connect(parse_redis_url(valkey_url)) as client:
        yield client


@pytest.fixture
async def workers(redis: Redis, tmp_path: Path) -> AsyncIterator[Workers]:
    made = Workers(redis, tmp_path)
    yield made
    for worker in made.made:
        if worker.running is not None and not worker.running.done():
            worker.subject.request_stop()
            worker.subject.request_stop()
            with contextlib.suppress(Exception):
                await worker.running
