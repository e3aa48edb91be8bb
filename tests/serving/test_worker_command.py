"""Promises of `taas worker`, as a process of its own, over the fake engine."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import redis as redis_sync

from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from loadtest import plain_http
from loadtest.forked import Program
from tests.fixtures.forked import start_module
from tests.fixtures.valkey import free_port
from tests.serving.conftest import FAKE_ENGINE, eventually, is_running

MODEL_ENTRY = {
    "name": "m", "pool": "m", "cell": "m", "engine_model": "m-engine", "context_tokens": 2048,
    "routes": ["chat"], "status": "active",
}  # fmt: skip


@dataclass
class WorkerProcess:
    """`python -m serving m` with a Python that starts the fake engine in vLLM's place."""

    valkey: redis_sync.Redis
    valkey_url: str
    folder: Path
    output: Path = field(init=False)
    process: Program | None = None

    def __post_init__(self) -> None:
        self.output = self.folder / "worker.log"
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        self.python = self.folder / "python"
        # Called as `python -m vllm.entrypoints.openai.api_server …`.
        self.python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {FAKE_ENGINE} "$@" $FAKE_ARGS\n')
        self.python.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> None:
        env = {
            **os.environ,
            "TAAS_REDIS_URL": self.valkey_url,
            "TAAS_HOME": str(self.folder / "home"),
            "TAAS_ENGINE_PORT_FIRST": str(free_port()),
            "TAAS_WORKER_METRICS_PORT_FIRST": str(free_port()),
            "TAAS_VLLM_PYTHON": str(self.python),
            "TAAS_ADMIN_KEY": "canary-admin-key",
            "FAKE_PIDS": str(self.folder / "pids"),
            "FAKE_ARGS": "",
            **environment,
        }
        self.output.unlink(missing_ok=True)
        command = ("serving", "m", "--path", str(self.folder / "model"), *arguments)
        self.process = start_module(*command, environment=env, log=self.output)

    def entry(self, status: InstanceStatus) -> InstanceEntry | None:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        entries = [InstanceEntry.from_json(raw) for raw in self.valkey.hvals(redis_keys.INSTANCES)]
        return next((entry for entry in entries if entry.status is status), None)

    async def ready(self) -> InstanceEntry:
        entry: InstanceEntry = await eventually(lambda: self.entry(InstanceStatus.READY))
        return entry

    async def ended(self) -> int:
        assert self.process is not None
        status: int = await asyncio.to_thread(self.process.wait, 30)
        return status

    def engine_pids(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "pids").read_text().split()]

    def said(self) -> str:
        return self.output.read_text()

    def guard(self) -> psutil.Process:
        assert self.process is not None
        (guard,) = psutil.Process(self.process.pid).children()
        assert "engine_guard.py" in " ".join(guard.cmdline())
        return guard


@pytest.fixture
async def worker(valkey: redis_sync.Redis, valkey_url: str, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    valkey.hset(redis_keys.MODELS, "m", json.dumps(MODEL_ENTRY))
    made = WorkerProcess(valkey, valkey_url, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    pids = made.engine_pids() if (tmp_path / "pids").exists() else []
    await eventually(lambda: not any(is_running(pid) for pid in pids))


async def test_kill_9_of_the_worker_leaves_no_process_of_its_engine(worker: WorkerProcess) -> None:
    worker.start()
    await worker.ready()
    guard, pids = worker.guard(), worker.engine_pids()
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    assert worker.process is not None
    worker.process.kill()
    await worker.ended()
    await eventually(lambda: not any(is_running(pid) for pid in [*pids, guard.pid]))


async def test_kill_9_of_the_worker_while_the_engine_starts_leaves_nothing_either(
    worker: WorkerProcess,
) -> None:
    worker.start(FAKE_ARGS="--start-seconds 600")
    await eventually(
        lambda: (
            worker.entry(InstanceStatus.STARTING)
            and (worker.folder / "pids").exists()
            and worker.engine_pids()
        )
    )
    pids = worker.engine_pids()
    assert worker.process is not None
    worker.process.kill()
    await worker.ended()
    await eventually(lambda: not any(is_running(pid) for pid in pids))


async def test_kill_9_of_the_guard_ends_the_engine_and_starts_it_again(worker: WorkerProcess) -> None:
    worker.start()
    first = await worker.ready()
    pids = worker.engine_pids()
    worker.guard().kill()
    await eventually(lambda: not any(is_running(pid) for pid in pids))
    again = await eventually(
        lambda: (entry := worker.entry(InstanceStatus.READY)) and entry.epoch != first.epoch and entry
    )
    assert again.instance == first.instance


async def test_sigterm_ends_it_cleanly_with_status_0(worker: WorkerProcess) -> None:
    worker.start()
    await worker.ready()
    pids = worker.engine_pids()
    assert worker.process is not None
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ended() == 0, worker.said()
    assert not any(is_running(pid) for pid in pids)
    (left,) = [InstanceEntry.from_json(raw) for raw in worker.valkey.hvals(redis_keys.INSTANCES)]
    assert left.status is InstanceStatus.DOWN
    assert left.final is not None
    assert left.final.exact
    assert "stopped" in worker.said()


async def test_ps_shows_no_key_and_the_engine_gets_none_of_our_secrets(worker: WorkerProcess) -> None:
    worker.start()
    entry = await worker.ready()
    assert entry.key is not None
    assert len(entry.key) > 30
    engine = psutil.Process(worker.engine_pids()[0])
    for process in (engine, worker.guard()):
        assert entry.key not in " ".join(process.cmdline())
        assert "canary-admin-key" not in process.environ().values()
    assert engine.environ()["VLLM_API_KEY"] == entry.key
    assert entry.key not in worker.said()


async def test_each_start_of_a_worker_has_a_key_of_its_own_and_keeps_the_instance_name(
    worker: WorkerProcess,
) -> None:
    port = str(free_port())
    worker.start("--port", port)
    first = await worker.ready()
    assert worker.process is not None
    worker.process.kill()
    await worker.ended()
    worker.start("--port", port)
    again = await eventually(
        lambda: (entry := worker.entry(InstanceStatus.READY)) and entry.key != first.key and entry
    )
    assert again.instance == first.instance
    assert again.epoch != first.epoch


async def test_its_own_metrics_are_served_and_named_in_its_first_line(worker: WorkerProcess) -> None:
    worker.start()
    await worker.ready()
    found = re.search(r"metrics on (http://127\.0\.0\.1:\d+/metrics)", worker.said())
    assert found is not None
    async with plain_http.AsyncClient() as http:
        text = (await http.get(found[1])).text
    assert re.search(r'^taas_worker_engine_up\{engine="m-.*",model="m"\} 1\.0$', text, re.MULTILINE)
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    own = {"taas_build_info", "taas_clock_ahead_of_redis_seconds"}
    assert {name for name in names if not name.startswith("taas_worker_")} == own


async def test_a_model_that_nobody_added_is_said_with_what_to_do(worker: WorkerProcess) -> None:
    worker.valkey.delete(redis_keys.MODELS)
    worker.valkey.hset(redis_keys.MODELS, "other", "{}")
    worker.start()
    assert await worker.ended() == 1
    assert "No model 'm' in the catalogue" in worker.said()
    assert "taas model add m" in worker.said()
    assert "It has: other." in worker.said()


async def test_a_retired_model_is_not_served(worker: WorkerProcess) -> None:
    worker.valkey.hset(redis_keys.MODELS, "m", json.dumps({**MODEL_ENTRY, "status": "retired"}))
    worker.start()
    assert await worker.ended() == 1
    assert "model m is retired" in worker.said()


async def test_a_redis_that_is_not_there_is_said_without_its_password(worker: WorkerProcess) -> None:
    worker.start(TAAS_REDIS_URL="redis://:canary-password@127.0.0.1:1/0")
    assert await worker.ended() == 1
    assert "Redis at 127.0.0.1:1 does not answer" in worker.said()
    assert "canary-password" not in worker.said()


async def test_a_missing_environment_and_missing_files_are_said(worker: WorkerProcess) -> None:
    worker.start("--vllm-python", "/nowhere/python")
    assert await worker.ended() == 1
    assert "There is no /nowhere/python" in worker.said()
    (worker.folder / "model" / "config.json").unlink()
    worker.start()
    assert await worker.ended() == 1
    assert "holds no model" in worker.said()


async def test_an_engine_that_cannot_start_ends_the_worker_with_the_lines_that_matter(
    worker: WorkerProcess,
) -> None:
    worker.start(FAKE_ARGS="--fail-with no-room-for-the-cache")
    assert await worker.ended() == 1
    assert "RuntimeError: no-room-for-the-cache" in worker.said()
    assert "Traceback" not in worker.said()
    assert worker.valkey.hlen(redis_keys.INSTANCES) == 0


async def test_a_python_that_cannot_be_run_is_said(worker: WorkerProcess) -> None:
    worker.python.chmod(0o644)
    worker.start()
    assert await worker.ended() == 1
    assert "cannot be started" in worker.said()


async def test_an_engine_argument_that_belongs_to_the_worker_is_refused(worker: WorkerProcess) -> None:
    worker.start("--engine-arg=--host=0.0.0.0")
    assert await worker.ended() == 1
    assert "--host is set by the worker itself" in worker.said()


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
async def test_a_worker_on_another_address_listens_there_alone_and_is_advertised_with_it(
    worker: WorkerProcess, address: str
) -> None:
    worker.start("--host", address)
    entry = await worker.ready()
    host = f"[{address}]" if ":" in address else address
    port = int(entry.url.rpartition(":")[2])
    assert entry.url == f"http://{host}:{port}"
    metrics = re.search(r"metrics on (http://\S+:\d+)/metrics", worker.said())
    assert metrics is not None
    assert metrics[1].startswith(f"http://{host}:")
    async with plain_http.AsyncClient() as client:
        assert (await client.get(f"{entry.url}/health")).status_code == 200
        assert "taas_worker_engine_up" in (await client.get(f"{metrics[1]}/metrics")).text
        for listening in (port, int(metrics[1].rpartition(":")[2])):
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{listening}/health")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0", "gateways need one that leads to it"),
        ("::", "gateways need one that leads to it"),
        ("192.0.2.1", "192.0.2.1 is no address of this machine"),
        ("no-such-host.invalid", "is no address of this machine"),
    ],
)
async def test_an_address_that_leads_nowhere_is_refused(
    worker: WorkerProcess, address: str, said: str
) -> None:
    worker.start("--host", address)
    assert await worker.ended() == 1
    assert said in worker.said()
    assert "Traceback" not in worker.said()


async def test_a_wrong_setting_is_named_as_its_variable(worker: WorkerProcess) -> None:
    worker.start(TAAS_DRAIN_S="soon")
    assert await worker.ended() == 1
    assert "TAAS_DRAIN_S" in worker.said()


async def test_an_ordered_restart_plans_anew_in_the_same_process_and_on_the_same_port(
    worker: WorkerProcess,
) -> None:
    worker.start()
    first = await worker.ready()
    assert worker.process is not None
    entry = {**MODEL_ENTRY, "context_tokens": 1024, "engine_model": "m-new"}
    worker.valkey.hset(redis_keys.MODELS, "m", json.dumps(entry))
    order = json.dumps({"epoch": first.epoch, "drain_s": 5})
    worker.valkey.hset(redis_keys.RESTARTS, first.instance, order)
    again = await eventually(
        lambda: (entry := worker.entry(InstanceStatus.READY)) and entry.epoch != first.epoch and entry
    )
    assert (again.instance, again.url, again.engine_model) == (first.instance, first.url, "m-new")
    engine = psutil.Process(worker.engine_pids()[-2])
    assert "1024" in engine.cmdline()
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ended() == 0, worker.said()


async def test_an_engine_that_does_not_start_after_a_restart_is_tried_again(worker: WorkerProcess) -> None:
    worker.start()
    first = await worker.ready()
    works = worker.python.read_text()
    worker.python.write_text("#!/bin/sh\nexit 3\n")
    order = json.dumps({"epoch": first.epoch, "drain_s": 5})
    worker.valkey.hset(redis_keys.RESTARTS, first.instance, order)
    await eventually(lambda: "The engine did not start" in worker.said())
    worker.python.write_text(works)
    again = await eventually(
        lambda: (entry := worker.entry(InstanceStatus.READY)) and entry.epoch != first.epoch and entry
    )
    assert again.instance == first.instance
