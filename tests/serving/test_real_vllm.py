"""The worker with real vLLM on the CPU: stopped, it drains and its last report is exact to the token; killed
while its engine starts, it leaves nothing behind. The last of the modules: it leaves the stack without an
engine.
"""

import asyncio
import json
import signal

import httpx
import pytest

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.tokens import CounterPair
from loadtest import plain_http
from tests.fixtures.stack import INSTANCE, MODEL, Stack, kill_9, model_folder
from tests.serving.conftest import eventually, is_running

CANARY = "canary-of-a-prompt"

pytestmark = pytest.mark.vllm


async def _gone(pids: list[int]) -> None:
    await eventually(lambda: not any(is_running(pid) for pid in pids))


async def _stream(http: httpx.AsyncClient, prompt: str, tokens: int) -> CounterPair:
    """One streamed chat to its end; what it cost by its own usage."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
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
        response = await http.post(path, json={"model": MODEL, **body})
        assert response.status_code >= 400, (path, body, response.text)


async def test_a_worker_that_is_stopped_drains_and_reports_each_token(stack: Stack) -> None:
    ready = _entry(stack)
    worker, family = stack.processes["worker"], stack.worker_family()
    assert ready.baseline.generation == 1
    assert len(family) >= 3, "guard, server, engine core"
    before = stack.engine_counters()
    async with plain_http.AsyncClient(base_url=ready.url, timeout=120) as http:
        assert (await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"})).status_code == 401
        http.headers["Authorization"] = f"Bearer {ready.key}"
        abort = await http.post("/inference/v1/abort_requests", json={"request_ids": ["none"]})
        assert abort.status_code == 200
        costs = [await _stream(http, CANARY, 5)]
        tools = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
        messages = [{"role": "user", "content": CANARY}]
        chat = await http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 4, **tools}
        )
        assert chat.status_code == 200, chat.text
        usage = chat.json()["usage"]
        costs.append(CounterPair(usage["prompt_tokens"], usage["completion_tokens"]))
        await _refused_with_canary(http)
        running = asyncio.create_task(_stream(http, CANARY, 150))
        await eventually(lambda: _entry(stack).load.running > 0)
        worker.send_signal(signal.SIGTERM)
        await eventually(lambda: _entry(stack).status is InstanceStatus.DRAINING)
        costs.append(await running)
    assert costs[-1].generation == 150, "the stream that ran at SIGTERM came to its end"
    assert await asyncio.to_thread(worker.wait, 60) == 0
    await _gone(family)
    final = _entry(stack).final
    assert final is not None
    assert final.exact
    produced = CounterPair(
        final.counters.prompt - before.prompt, final.counters.generation - before.generation
    )
    assert produced == CounterPair(sum(cost.prompt for cost in costs), sum(cost.generation for cost in costs))
    log = (stack.home / "logs" / f"engine-{INSTANCE}.log").read_text(errors="replace")
    assert CANARY not in log
    assert str(ready.key) not in log


async def test_kill_9_of_the_worker_leaves_no_vllm(stack: Stack) -> None:
    stack.start_worker(model_folder())
    await eventually(lambda: len(stack.worker_family()) >= 3, patience_s=120)
    family = stack.worker_family()
    kill_9(stack.processes["worker"].pid)
    await _gone(family)


def _entry(stack: Stack) -> InstanceEntry:
    return InstanceEntry.from_json(json.dumps(stack.instance()))
