"""Promises of a worker of a private model, as a process of its own, over the fake engine."""

import asyncio
import hashlib
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import redis as redis_sync

from billing.wire import redis_keys
from billing.wire.evidence import RunningEngine
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from serving.private_user import NUMBERS
from tests.serving.conftest import FAKE_ENGINE, eventually, is_running
from tests.serving.test_worker_command import MODEL_ENTRY, WorkerProcess

PRIVATE = {**MODEL_ENTRY, "owner": "ten_acme"}
# In vLLM's place, by a Python that every user may run; it runs our scripts too.
PYTHON = """#!/bin/sh
[ "$1" = -m ] || exec /usr/bin/python3 "$@"
shift 2
exec /usr/bin/python3 {engine} "$@"
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process another user")


@dataclass
class PrivateWorker(WorkerProcess):
    """In a folder that others may pass through, as an installed one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        engine = self.folder / "engine.py"
        engine.write_text(FAKE_ENGINE.read_text())
        self.python.write_text(PYTHON.format(engine=engine))
        pids = self.folder / "pids"
        pids.touch()
        pids.chmod(0o666)

    def start(self, *arguments: str, **environment: str) -> None:
        super().start(*arguments, TAAS_PRIVATE_USERS=str(self.folder / "users"), **environment)

    def said_of_engine(self) -> RunningEngine | None:
        found = self.valkey.hvals(redis_keys.EVIDENCE)
        return RunningEngine.from_json(found[0]) if found else None


@pytest.fixture
async def worker(
    valkey: redis_sync.Redis, valkey_url: str, open_folder: Path
) -> AsyncIterator[PrivateWorker]:
    valkey.hset(redis_keys.MODELS, "m", json.dumps(PRIVATE))
    made = PrivateWorker(valkey, valkey_url, open_folder)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    pids = made.engine_pids()
    await eventually(lambda: not any(is_running(pid) for pid in pids))


def facts_of(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


@as_root
async def test_guard_and_engine_of_a_private_model_run_as_its_user(worker: PrivateWorker) -> None:
    worker.start()
    entry = await worker.ready()
    assert entry.own_user is True
    folder = worker.folder / "home" / "private" / "m"
    number = folder.stat().st_uid
    assert number in NUMBERS
    for pid in (worker.guard().pid, *worker.engine_pids()):
        process = psutil.Process(pid)
        assert set(process.uids()) == set(process.gids()) == {number}
        groups = facts_of(pid, "status").partition("\nGroups:")[2].partition("\n")[0]
        assert {*groups.split()} <= {str(number)}
    engine = psutil.Process(worker.engine_pids()[0])
    assert engine.cwd() == str(folder)
    assert engine.environ()["HOME"] == str(folder)
    assert re.search(r"^Max core file size +1 +1 ", facts_of(engine.pid, "limits"), re.MULTILINE)
    log = next((worker.folder / "home" / "logs").iterdir())
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (0, 0o600)
    running: RunningEngine = await eventually(worker.said_of_engine)
    assert (running.os_user, running.own_user) == (str(number), True)


@as_root
async def test_the_engines_key_is_read_by_no_other_user(worker: PrivateWorker) -> None:
    worker.start()
    key = (await worker.ready()).key
    assert key is not None
    searching = await asyncio.create_subprocess_exec(
        "/usr/bin/grep", "-rsaF", "-f", "-", "/proc", str(worker.folder), "--include=environ",
        "--include=cmdline", "--include=*.log", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, user=NUMBERS[0] - 1, group=NUMBERS[0] - 1, extra_groups=(),
    )  # fmt: skip
    assert (await searching.communicate(key.encode()))[0] == b""
    assert searching.returncode in {1, 2}, "it has searched"


@as_root
async def test_the_user_is_the_same_after_a_restart(worker: PrivateWorker) -> None:
    worker.start()
    await worker.ready()
    first = psutil.Process(worker.engine_pids()[0]).uids().real
    assert worker.process is not None
    worker.process.kill()
    await worker.ended()
    worker.start()
    await eventually(lambda: len(worker.engine_pids()) == 4)
    assert psutil.Process(worker.engine_pids()[-1]).uids().real == first


async def test_an_engine_of_a_model_without_an_owner_keeps_the_workers_user(worker: PrivateWorker) -> None:
    worker.valkey.hset(redis_keys.MODELS, "m", json.dumps(MODEL_ENTRY))
    worker.start()
    assert (await worker.ready()).own_user is None
    assert psutil.Process(worker.engine_pids()[0]).uids().real == os.geteuid()
    running: RunningEngine = await eventually(worker.said_of_engine)
    assert not running.own_user


@as_root
async def test_a_folder_that_its_user_may_not_pass_is_said_and_nothing_is_started(
    worker: PrivateWorker,
) -> None:
    worker.folder.chmod(0o700)
    worker.start()
    assert await worker.ended() == 1
    assert f"chmod o+x {worker.folder}" in worker.said()
    assert worker.engine_pids() == []


async def test_its_cache_is_told_of_on_a_socket_of_this_engine_in_its_folder(worker: PrivateWorker) -> None:
    """Two engines of one private model share the folder, and not the socket."""
    worker.start(TAAS_CACHE_EVENTS="1")
    port = (await worker.ready()).url.rpartition(":")[2]
    command = psutil.Process(worker.engine_pids()[0]).cmdline()
    endpoint = json.loads(command[command.index("--kv-events-config") + 1])["endpoint"]
    assert endpoint == f"ipc://{worker.folder}/home/private/m/cache-{port}.sock"


def sums(folder: Path) -> str:
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.name}\n" for path in folder.iterdir()
    )


async def test_an_engine_starts_with_the_weights_that_were_listed_and_with_no_others(
    worker: PrivateWorker,
) -> None:
    weights, listed = worker.folder / "model", worker.folder / "SHA256SUMS"
    (weights / "model.safetensors").write_bytes(b"weights")
    listed.write_text(sums(weights))
    worker.start("--weights-sha256", str(listed), "--instance", "first")
    await worker.ready()
    serving, serving_process = worker.engine_pids(), worker.process
    (weights / "model.safetensors").write_bytes(b"others!")
    wrong = hashlib.sha256(b"others!").hexdigest()
    (weights / "more.safetensors").touch()
    worker.start("--weights-sha256", str(listed), "--instance", "second")
    assert await worker.ended() == 1
    assert f"model.safetensors has SHA-256 {wrong}, not " in worker.said()
    assert "more.safetensors is not in the list" in worker.said()
    worker.process = serving_process
    assert worker.engine_pids() == serving, "nothing was started, and what was serving goes on"
    assert all(is_running(pid) for pid in serving)
    assert worker.entry(InstanceStatus.READY) is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("", "lists no file"), ("abc  f\n", "line 1"), ("\xff", "line 1")],
)
async def test_a_list_that_is_none_is_said(worker: PrivateWorker, text: str | None, said: str) -> None:
    listed = worker.folder / "SHA256SUMS"
    if text is not None:
        listed.write_text(text, encoding="latin-1")
    worker.start("--weights-sha256", str(listed))
    assert await worker.ended() == 1
    assert "--weights-sha256: " in worker.said()
    assert said in worker.said()
    assert "Traceback" not in worker.said()


async def test_a_port_that_is_taken_is_said_and_what_serves_there_goes_on(worker: PrivateWorker) -> None:
    worker.start("--instance", "first")
    first: InstanceEntry = await worker.ready()
    serving, port = worker.process, first.url.rpartition(":")[2]
    worker.start("--instance", "second", "--port", port)
    assert await worker.ended() == 1
    assert f"port {port} of 127.0.0.1 is taken: give another --port" in worker.said()
    worker.process = serving
    entry = worker.entry(InstanceStatus.READY)
    assert entry is not None
    assert (entry.instance, entry.epoch) == (first.instance, first.epoch)


async def test_a_port_that_becomes_free_is_waited_for(worker: PrivateWorker) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        port = held.getsockname()[1]
        worker.start("--port", str(port))
        await eventually(worker.output.exists)
    assert (await worker.ready()).url.endswith(f":{port}")
