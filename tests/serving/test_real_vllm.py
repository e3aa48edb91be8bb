"""The worker with real vLLM on the CPU: it starts, is audited to the token, drains, and leaves nothing
behind.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import redis as redis_sync

from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.tokens import CounterPair
from serving.catalogue import known_models
from tests.fixtures import plain_http
from tests.fixtures.valkey import free_port
from tests.serving.conftest import eventually, is_running

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
NAME = "smollm2-135m-instruct"
CANARY = "canary-of-a-prompt"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: `make up` makes it"),
]


@pytest.fixture
def worker(valkey: redis_sync.Redis, valkey_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """`taas worker` on the default model; its files are those of `make up`, or are made now."""
    entry = {**known_models()[NAME].entry_fields(), "pool": NAME, "cell": NAME, "status": "active"}
    valkey.hset(redis_keys.MODELS, NAME, json.dumps(entry))
    env = {
        **os.environ,
        "TAAS_REDIS_URL": valkey_url,
        "TAAS_HOME": str(ROOT / ".taas"),
        "TAAS_ENGINE_PORT_FIRST": str(free_port()),
        "TAAS_WORKER_METRICS_PORT_FIRST": str(free_port()),
        "TAAS_VLLM_PYTHON": str(PYTHON),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", NAME, "--instance", "test-real-vllm"], env=env
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


async def _entry_with(
    valkey: redis_sync.Redis, worker: subprocess.Popen[bytes], status: InstanceStatus
) -> InstanceEntry:
    def there() -> InstanceEntry | None:
        assert worker.poll() is None, "the worker ended; what it said is above"
        raw = valkey.hget(redis_keys.INSTANCES, "test-real-vllm")
        entry = None if raw is None else InstanceEntry.from_json(str(raw))
        return entry if entry is not None and entry.status is status else None

    entry: InstanceEntry = await eventually(there, patience_s=300)
    return entry


async def _gone(pids: list[int]) -> None:
    await eventually(lambda: not any(is_running(pid) for pid in pids))


def _family(worker: subprocess.Popen[bytes]) -> list[int]:
    return [child.pid for child in psutil.Process(worker.pid).children(recursive=True)]


def _load_running(valkey: redis_sync.Redis) -> int:
    return InstanceEntry.from_json(str(valkey.hget(redis_keys.INSTANCES, "test-real-vllm"))).load.running


async def _stream(http: httpx.AsyncClient, prompt: str, tokens: int) -> CounterPair:
    """One streamed chat to its end; what it cost by its own usage."""
    body = {
        "model": NAME, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    last = ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                last = line
        assert line in {"", "data: [DONE]"}
    usage = json.loads(last.removeprefix("data: "))["usage"]
    return CounterPair(usage["prompt_tokens"], usage["completion_tokens"])


async def _refused_with_canary(http: httpx.AsyncClient) -> None:
    """Requests that vLLM refuses, each with the canary where its errors may quote it."""
    messages = [{"role": "user", "content": CANARY}]
    bad_schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": CANARY}}}
    for path, body in [
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 10**9}),
        ("/v1/chat/completions", {"messages": messages, "temperature": CANARY}),
        ("/v1/chat/completions", {"messages": [{"role": CANARY, "content": {"a": CANARY}}]}),
        ("/v1/chat/completions", {"messages": messages, "response_format": bad_schema}),
        ("/v1/chat/completions", {"messages": messages, "logit_bias": {CANARY: 1}}),
        ("/v1/completions", {"prompt": {"a": CANARY}}),
        ("/v1/completions", {"prompt": CANARY, "structured_outputs": {"regex": f"({CANARY}"}}),
        ("/v1/messages", {"messages": messages, "max_tokens": 10**9}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": CANARY}]}], "max_tokens": 2}),
        ("/v1/messages", {"messages": [{"role": "user", "content": CANARY * 9_000}], "max_tokens": 2}),
        ("/v1/responses", {"input": [{"type": CANARY, "content": CANARY}]}),
    ]:  # fmt: skip
        response = await http.post(path, json={"model": NAME, **body})
        assert response.status_code >= 400, (path, body, response.text)


async def test_real_vllm_is_registered_audited_and_drained(
    worker: subprocess.Popen[bytes], valkey: redis_sync.Redis
) -> None:
    ready = await _entry_with(valkey, worker, InstanceStatus.READY)
    assert ready.baseline.generation == 1
    family = _family(worker)
    assert len(family) >= 3, "guard, server, engine core"
    async with plain_http.AsyncClient(base_url=ready.url, timeout=120) as http:
        assert (await http.post("/v1/completions", json={"model": NAME, "prompt": "x"})).status_code == 401
        http.headers["Authorization"] = f"Bearer {ready.key}"
        abort = await http.post("/inference/v1/abort_requests", json={"request_ids": ["none"]})
        assert abort.status_code == 200
        costs = [await _stream(http, CANARY, 5)]
        tools = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
        chat = await http.post(
            "/v1/chat/completions",
            json={"model": NAME, "messages": [{"role": "user", "content": CANARY}], "max_tokens": 4, **tools},
        )
        assert chat.status_code == 200, chat.text
        costs.append(
            CounterPair(chat.json()["usage"]["prompt_tokens"], chat.json()["usage"]["completion_tokens"])
        )
        await _refused_with_canary(http)
        running = asyncio.create_task(_stream(http, CANARY, 150))
        await eventually(lambda: _load_running(valkey) > 0)
        worker.send_signal(signal.SIGTERM)
        await _entry_with(valkey, worker, InstanceStatus.DRAINING)
        costs.append(await running)
    assert costs[-1].generation == 150, "the stream that ran at SIGTERM came to its end"
    assert await asyncio.to_thread(worker.wait, 60) == 0
    await _gone(family)
    left = InstanceEntry.from_json(str(valkey.hget(redis_keys.INSTANCES, "test-real-vllm")))
    assert left.final is not None
    assert left.final.exact
    produced = CounterPair(
        left.final.counters.prompt - ready.baseline.prompt,
        left.final.counters.generation - ready.baseline.generation,
    )
    assert produced == CounterPair(sum(cost.prompt for cost in costs), sum(cost.generation for cost in costs))
    log = (ROOT / ".taas" / "logs" / "engine-test-real-vllm.log").read_text(errors="replace")
    assert CANARY not in log
    assert str(ready.key) not in log
